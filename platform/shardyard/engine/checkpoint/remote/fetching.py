"""A run that lies in an object store, brought to this machine: its folder, and its newest whole checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from shardyard.engine.checkpoint import files
from shardyard.engine.checkpoint.remote import contents
from shardyard.engine.checkpoint.remote.contents import CHECKPOINTS, Stored
from shardyard.engine.checkpoint.remote.mirror import INFO, OWNER
from shardyard.engine.checkpoint.remote.store import Store
from shardyard.errors import CheckpointError, RunFolderError, UsageError
from shardyard.tracking.run.folder import RunFolder
from shardyard.units import format_bytes


def fetched(url: str, runs_dir: Path, *, step: int | None = None, report: Callable[[str], None]) -> RunFolder:
    """The folder of a run, with a checkpoint that is at least as new as the newest good one in the store.

    A folder that is here already keeps its files; only a newer checkpoint is added to it.

    Args:
        url: of the run in the store, such as s3://BUCKET/FOLDER/RUN.
        step: of the checkpoint to fetch. Default: the newest one that is whole.
        report: called with what is fetched or passed over.

    Raises:
        UsageError: there is no run, or no such checkpoint.
        CheckpointError: the store cannot be read, or none of its checkpoints is whole.
    """
    store = Store(url)
    folder = _folder(store, runs_dir, report)
    _fetch_checkpoint(store, folder, step, report)
    return folder


def _folder(store: Store, runs_dir: Path, report: Callable[[str], None]) -> RunFolder:
    text = store.read_if_there(INFO)
    if text is None:
        raise UsageError(
            f"{store.url} holds no run: it has no run.json. Its address is checkpoint.mirror and the id of the run."
        )
    try:
        info = json.loads(text)
        run_id, created = str(info["id"]), info["created"]
    except (ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"{store.url}/{INFO} is damaged: {error!r}") from error
    target = runs_dir / run_id
    if Path(run_id).name != run_id or run_id.startswith("."):
        raise RunFolderError(f"{store.url}/{INFO} has the id {run_id!r}, which is no name of a folder")
    if (target / INFO).is_file():
        folder = RunFolder(target)
        if folder.info().created != created:
            raise UsageError(f"{target} is another run of the same id; give another --runs-dir")
        return folder
    aside = runs_dir / f".{run_id}.fetched"
    shutil.rmtree(aside, ignore_errors=True)
    found = {
        name: size
        for name, size in store.sizes().items()
        if name != OWNER and name.partition("/")[0] not in (CHECKPOINTS, "final") and _is_inside(name)
    }
    report(f"fetching {len(found)} files of {run_id} ({format_bytes(sum(found.values()))}) from {store.url}")
    list(store.together(lambda name: store.get(name, aside / name), found))
    (aside / "logs").mkdir(exist_ok=True)
    target.mkdir(exist_ok=True)
    for path in [*(one for one in aside.iterdir() if one.name != INFO), aside / INFO]:
        path.replace(target / path.name) if not (target / path.name).exists() else None
    shutil.rmtree(aside, ignore_errors=True)
    return RunFolder(target)


def _fetch_checkpoint(store: Store, folder: RunFolder, step: int | None, report: Callable[[str], None]) -> None:
    here = {files.step_of(path) for path in files.committed_checkpoints(folder.checkpoints)}
    found = [one for one in contents.stored_in(store) if one.is_committed]
    if step is not None:
        if step == 0 or step in here:
            return
        wanted = [one for one in found if one.step == step and one.manifest is not None]
        if not wanted:
            there = ", ".join(str(one.step) for one in found) or "none"
            raise UsageError(f"--step {step}: {store.url} has no checkpoint of this step; available steps: {there}")
    else:
        wanted = [one for one in reversed(found) if one.is_good]
    for one in wanted:
        if step is None and here and one.step <= max(here):
            return
        if _fetch(store, folder, one, report):
            return
    if found and not here:
        raise CheckpointError(
            f"no checkpoint in {store.url} is whole; `shardyard checkpoint verify {store.url}` tells what each lacks"
        )


def _fetch(store: Store, folder: RunFolder, one: Stored, report: Callable[[str], None]) -> bool:
    """Fetch and verify a checkpoint; False if it is damaged in the store."""
    manifest = one.manifest
    assert manifest is not None, "those without one are not wanted"
    partial = files.partial_folder(folder.checkpoints, one.step)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    report(f"fetching {one.name} ({format_bytes(sum(one.sizes.values()))}) from {store.url}")
    names = [name for name in manifest["files"] if name in one.sizes and _is_inside(name)]
    list(store.together(lambda name: store.get(f"{CHECKPOINTS}/{one.name}/{name}", partial / name), names))
    bad = files.damaged_files(partial, manifest)
    if bad:
        report(f"{store.url}: {one.name} is passed over: {', '.join(bad)} differ from the manifest")
        shutil.rmtree(partial, ignore_errors=True)
        return False
    (partial / files.MANIFEST).write_bytes(contents.manifest_text({**manifest}))
    partial.rename(files.committed_folder(folder.checkpoints, one.step))
    return True


def _is_inside(name: str) -> bool:
    """Whether a name in a store stays in its folder as a path of this machine."""
    return not Path(name).is_absolute() and ".." not in Path(name).parts
