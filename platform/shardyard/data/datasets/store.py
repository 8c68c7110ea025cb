"""Datasets on the disk: `<root>/<name>/<split>-*.parquet` and `manifest.json`, written atomically."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shardyard.data.whole_files import sync
from shardyard.errors import DataError
from shardyard.recipe.catalog.datasets import DATASETS, DatasetSpec
from shardyard.suggest import suggestion

MANIFEST = "manifest.json"
# No preparation takes longer: an older temporary folder is left over from a killed process.
LEFT_SECONDS = 86_400.0
_PART_BYTES = 1 << 20


@dataclass(frozen=True)
class FileRecord:
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The manifest of a dataset: origin, licence, and files.

    `packages` are versions by name; `rows_sha256` is over the rows of a split, independent of the Parquet writer;
    `left_out` counts excluded rows of the packages by reason.
    """

    name: str
    conversion: int
    packages: dict[str, str]
    licence: str
    attribution: str
    held_out: str
    columns: dict[str, str]
    label_names: dict[str, list[str]]
    num_rows: dict[str, int]
    rows_sha256: dict[str, str]
    left_out: dict[str, int]
    files: dict[str, FileRecord]

    @property
    def num_bytes(self) -> int:
        return sum(record.num_bytes for record in self.files.values())


def data_root() -> Path:
    """The folder of datasets: `SHARDYARD_DATA`, else `data` in `SHARDYARD_CACHE`, else in ~/.cache/shardyard."""
    configured = os.environ.get("SHARDYARD_DATA")
    if configured:
        return Path(configured).expanduser()
    cache = os.environ.get("SHARDYARD_CACHE")
    return (Path(cache).expanduser() if cache else Path.home() / ".cache" / "shardyard") / "data"


def known(name: str) -> DatasetSpec:
    """The dataset with this name, prepared or not.

    Raises:
        DataError: the dataset does not exist.
    """
    if name not in DATASETS:
        raise DataError(f"there is no dataset {name!r}; {suggestion(name, DATASETS, shown=20)}")
    return DATASETS[name]


def read_manifest(name: str) -> Manifest:
    """The manifest of a dataset, after checking its file sizes.

    Raises:
        DataError: the dataset does not exist, is not prepared, stale or incomplete.
    """
    dataset, folder = known(name), data_root() / name
    advice = f"run `shardyard data prepare {name}`"
    try:
        manifest = _parse((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{name} is not prepared here; {advice}.") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{folder} cannot be read as a dataset ({error}); {advice}.") from error
    if manifest.conversion != dataset.conversion:
        raise DataError(f"{name} was prepared by another version of its conversion; {advice}.")
    for file, record in manifest.files.items():
        found = (folder / file).stat().st_size if (folder / file).is_file() else None
        if found != record.num_bytes:
            state = "missing" if found is None else f"{found} bytes long, not {record.num_bytes}"
            raise DataError(f"{name}: {folder / file} is {state}; {advice}.")
    return manifest


def _parse(text: str) -> Manifest:
    fields = json.loads(text)
    files = {file: FileRecord(**record) for file, record in fields.pop("files").items()}
    return Manifest(**fields, files=files)


def damaged_files(name: str) -> list[str]:
    """Files whose SHA-256 differs from the manifest; reads every byte. Raises DataError as `read_manifest` does."""
    folder = data_root() / name
    return [file for file, record in read_manifest(name).files.items() if _sha256(folder / file) != record.sha256]


def install(name: str, build: Callable[[Path], Callable[[dict[str, FileRecord]], Manifest]]) -> Manifest:
    """Build a dataset in a temporary folder and rename it, replacing an existing one.

    `build` fills the folder and returns a function that makes the manifest from the file records.

    Raises:
        OSError: the disk is full or not writable; an existing dataset is then kept.
    """
    with workspace(name) as aside:
        folder = aside / "new"
        folder.mkdir()
        make_manifest = build(folder)
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        manifest = make_manifest(
            {str(path.relative_to(folder)): FileRecord(path.stat().st_size, _sha256(path)) for path in paths}
        )
        (folder / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1, ensure_ascii=False), encoding="utf-8")
        for path in (*folder.rglob("*"), folder):
            sync(path)
        return _put_in_place(folder, name, aside / "old") or manifest


def _put_in_place(folder: Path, name: str, old: Path) -> Manifest | None:
    """Rename the folder; returns the manifest of another process if that finished first."""
    target = data_root() / name
    with contextlib.suppress(FileNotFoundError):
        target.rename(old)
    try:
        folder.rename(target)
    except OSError:
        if target.exists():
            return read_manifest(name)
        if old.exists():
            old.rename(target)
        raise
    sync(target.parent)
    return None


@contextlib.contextmanager
def workspace(name: str) -> Iterator[Path]:
    """A temporary folder beside the datasets, removed at the end; those of killed processes are removed after a day.

    Raises:
        DataError: the data folder is not writable.
    """
    root = data_root()
    try:
        root.mkdir(parents=True, exist_ok=True)
        for left in root.glob(f".{name}.*"):
            if time.time() - left.stat().st_mtime > LEFT_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=root))
    except OSError as error:
        raise DataError(
            f"{root} cannot be written ({error.strerror or error}); set SHARDYARD_DATA to a folder that can."
        ) from error
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(_PART_BYTES):
            digest.update(part)
    return digest.hexdigest()


def manifest_of(dataset: DatasetSpec, packages: dict[str, str], **fields: Any) -> Manifest:
    """A manifest with the facts about a dataset that are known before its conversion."""
    return Manifest(
        name=dataset.name,
        conversion=dataset.conversion,
        packages=packages,
        licence=dataset.licence,
        attribution=dataset.attribution,
        held_out=dataset.held_out,
        columns=dict(dataset.columns),
        **fields,
    )
