"""Keeps a copy of a run in an object store: its newest checkpoints, and the files of its folder as of the newest one.

Each call of `sync` compares what is here with what is there, so that nothing has to be remembered: what a process that
was killed left behind is finished or removed by the next one. A checkpoint exists there from its manifest on, which is
written last and removed first.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from shardyard.engine.checkpoint import files
from shardyard.engine.checkpoint.remote import contents
from shardyard.engine.checkpoint.remote.contents import CHECKPOINTS, Stored
from shardyard.engine.checkpoint.remote.store import Store
from shardyard.errors import CheckpointError
from shardyard.tracking.run.events import CheckpointMirrored
from shardyard.tracking.run.folder import RunFolder
from shardyard.tracking.run.holder import this_process

OWNER = "owner.json"
INFO = "run.json"
# Of this process or machine, or with a way of their own to a server.
_NOT_COPIED = frozenset((CHECKPOINTS, "final", "adapter", "wandb", "logs", "lease.json", "stop.json"))


def address_of(mirror: str, run_id: str) -> str:
    """Where the copy of a run lies: in a folder of its id."""
    return f"{mirror.rstrip('/')}/{run_id}"


class Mirror:
    """The copy of one run. Not thread-safe.

    behind: whether the last `sync` has left something to do.
    """

    def __init__(
        self, folder: RunFolder, store: Store, keep: int, report: Callable[[CheckpointMirrored], None] = lambda _: None
    ) -> None:
        """
        Args:
            keep: number of newest checkpoints in the store.
            report: called with each checkpoint that has been copied.
        """
        self._folder, self._store, self._keep, self._report = folder, store, keep, report
        self._token = secrets.token_hex(8)
        # Hash of the manifest of each checkpoint in the store.
        self._there: dict[str, str] = {}
        self._copied: dict[str, tuple[int, int]] = {}

    def claim(self) -> None:
        """Check that the store can be written, and take the copy over from whoever kept it.

        Raises:
            CheckpointError: it cannot be written, or holds another run of this id.
        """
        self._store.check_writable()
        stored = self._store.read_if_there(INFO)
        if stored is not None and _created(stored) != self._folder.info().created:
            raise CheckpointError(
                f"{self._store.url} holds another run of this id, of {_created(stored)}; set checkpoint.mirror "
                "to another folder, or remove that one"
            )
        owner = {"token": self._token, **this_process(), "time": time.time()}
        self._store.put(OWNER, json.dumps(owner).encode())
        found = contents.stored_in(self._store)
        self._there = {one.name: one.manifest["sha256"] if one.manifest else "" for one in found if one.is_committed}
        self._mark_set_aside(found)

    def sync(self) -> None:
        """Copy what is missing, the newest checkpoint first, and remove what is too much.

        Raises:
            CheckpointError: the store refuses; the next call goes on.
        """
        while (path := self._next()) is not None:
            self._copy(path)
        self._tidy()

    @property
    def is_behind(self) -> bool:
        """Whether a checkpoint is not in the store yet."""
        return self._next() is not None

    def finish(self) -> None:
        """`sync`, and copy the files of the folder and the exported model.

        Raises:
            CheckpointError: the store refuses.
        """
        self.sync()
        self._check_owner()
        self._copy_folder()
        for path in _inside(self._folder.final, last="config.json"):
            self._copy_file(path)

    def _next(self) -> Path | None:
        """The newest checkpoint that is not in the store as it is here."""
        for path in reversed(files.committed_checkpoints(self._folder.checkpoints)[-self._keep :]):
            try:
                manifest = files.read_manifest(path)
            except CheckpointError:
                continue  # a restart renames it
            if self._there.get(path.name) != manifest["sha256"]:
                return path
        return None

    def _copy(self, path: Path) -> None:
        started = time.monotonic()
        manifest = files.read_manifest(path)
        top = f"{CHECKPOINTS}/{path.name}"
        there = self._stored(path.name)
        known = there.manifest if there is not None else None
        if known is None or known["files"] != manifest["files"]:
            if there is not None:
                contents.remove(self._store, there)
                self._there.pop(path.name, None)
            try:
                list(
                    self._store.together(lambda name: self._store.put(f"{top}/{name}", path / name), manifest["files"])
                )
            except FileNotFoundError:
                # Rotation was faster: a newer one is there to be copied.
                if (left := self._stored(path.name)) is not None:
                    contents.remove(self._store, left)
                return
        self._copy_folder()
        self._check_owner()
        self._store.put(f"{top}/{files.MANIFEST}", contents.manifest_text({**manifest}))
        self._there[path.name] = manifest["sha256"]
        size = sum(int(one["size_bytes"]) for one in manifest["files"].values())
        seconds = time.monotonic() - started
        self._report(CheckpointMirrored(step=manifest["step"], url=self._store.url, seconds=seconds, bytes=size))

    def _tidy(self) -> None:
        """Remove checkpoints beyond `keep`, and what interrupted uploads left."""
        found = contents.stored_in(self._store)
        left = [one for one in found if not one.is_committed]
        for one in [*contents.doomed(found, self._keep), *left]:
            contents.remove(self._store, one)
            self._there.pop(one.name, None)

    def _stored(self, name: str) -> Stored | None:
        return next((one for one in contents.stored_in(self._store) if one.name == name), None)

    def _mark_set_aside(self, found: list[Stored]) -> None:
        """No run goes on from what `resume --step` has set aside here."""
        here = {path.name for path in files.committed_checkpoints(self._folder.checkpoints)}
        for one in found:
            aside = any(self._folder.checkpoints.glob(f"aside-{one.name}*"))
            if one.manifest is not None and one.is_good and aside and one.name not in here:
                marked: Mapping[str, object] = {**one.manifest, "good": False, "why": "set aside by --step"}
                self._store.put(f"{CHECKPOINTS}/{one.name}/{files.MANIFEST}", contents.manifest_text(marked))

    def _check_owner(self) -> None:
        text = self._store.read_if_there(OWNER)
        try:
            token = json.loads(text or b"{}").get("token")
        except (ValueError, AttributeError):
            token = None
        if token not in (self._token, None):
            raise TakenOverMirrorError(
                f"another process keeps {self._store.url} now; this one copies nothing more. Two runs on different "
                "machines go on from one copy: stop one of them"
            )

    def _copy_folder(self) -> None:
        """Files of the run folder that have changed, run.json last."""
        for path in _inside(self._folder.path, last=INFO):
            self._copy_file(path)

    def _copy_file(self, path: Path) -> None:
        try:
            found = path.stat()
            state = (found.st_size, found.st_mtime_ns)
            name = path.relative_to(self._folder.path).as_posix()
            if self._copied.get(name) == state:
                return
            # A file that grows meanwhile would have another size than expected.
            self._store.put(name, path.read_bytes() if found.st_size < files.SMALL_BYTES else path)
        except FileNotFoundError:
            return
        self._copied[name] = state


class TakenOverMirrorError(CheckpointError):
    """Another process keeps the copy now."""


def _inside(folder: Path, *, last: str) -> Iterator[Path]:
    """The files below a folder that are copied, `last` as the last one."""
    found = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()]
    names = [(path.relative_to(folder), path) for path in found]
    kept = [
        path
        for name, path in names
        if name.parts[0] not in _NOT_COPIED and not any(part.startswith(".") for part in name.parts)
    ]
    yield from sorted(kept, key=lambda path: path == folder / last)


def _created(info: bytes) -> object:
    try:
        return json.loads(info).get("created")
    except (ValueError, AttributeError):
        return None
