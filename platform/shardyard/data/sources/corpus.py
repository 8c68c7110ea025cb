"""Embedded corpora: prose and code of the running Python's standard library, which need no download.

They are written once into a cache folder as Parquet shards and read back like any other source. The content of a
corpus depends on the Python version, so losses are comparable only between runs with the same `fingerprint`. Documents
from the same module (its docstrings and its source) or topic are on the same side of the split in all corpora.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import heapq
import json
import logging
import os
import platform
import re
import shutil
import sysconfig
import tempfile
import threading
import tokenize
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from shardyard.errors import DataError

log = logging.getLogger(__name__)

BUILDER_VERSION = 1
TRAIN_SHARDS = 64
VALIDATION_PERCENT = 5
# Topics are as long as chapters. Splitting them into parts of this size balances the streams' shares, so that no stream
# repeats its documents much more often than another.
PART_CHARACTERS = 4000
LEAST_MODULE_DOCSTRING = 200
ROWS_PER_GROUP = 16

_EXCLUDED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "idlelib", "lib2to3", "__pycache__",
             "ensurepip", "pydoc_data", "encodings"}  # fmt: skip
# Python 3.11 counts the depth of syntax trees for all threads together: parsing in two of them raises SystemError.
_PARSING = threading.Lock()
_MODULE_DOCSTRING = re.compile(r"(?:[ \t]*(?:#[^\n]*)?\n)*([rRuU]?(\"\"\"|''').*?\2)", re.DOTALL)


@dataclass(frozen=True)
class Document:
    """A document; its `key`, the module or topic, decides the side of the split."""

    id: str
    key: str
    text: str


@dataclass(frozen=True)
class Module:
    name: str
    source: str


@dataclass(frozen=True)
class Fingerprint:
    """Fingerprint of an embedded corpus: equal fingerprints mean equal documents in equal shards.

    `sha256` is over all ids and texts, train first; `num_bytes` counts the UTF-8 text of the train split.
    """

    corpus: str
    python: str
    builder: int
    sha256: str
    num_documents: int
    num_validation_documents: int
    num_bytes: int


def corpus_files(name: str) -> dict[str, list[str]]:
    """Parquet files of each split (`train`, `validation`) with columns `id` and `text`; built at first use.

    Raises:
        DataError: the corpus is unknown, or this Python lacks the sources of its standard library.
    """
    folder = _built(name)
    return {split: sorted(str(path) for path in folder.glob(f"{split}-*.parquet")) for split in ("train", "validation")}


def fingerprint(name: str) -> Fingerprint:
    """The fingerprint of a corpus, for the provenance of a run. Raises DataError as `corpus_files` does."""
    return Fingerprint(**json.loads((_built(name) / "manifest.json").read_text())["fingerprint"])


def split_of(key: str) -> str:
    """`validation` for about 5% of the keys, `train` for the others; a function of the key alone."""
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    return "validation" if number % 100 < VALIDATION_PERCENT else "train"


def _built(name: str) -> Path:
    if name not in CORPORA:
        raise DataError(f"there is no embedded corpus {name!r}; there are {', '.join(CORPORA)}.")
    folder_name = f"{name}-{platform.python_version()}-v{BUILDER_VERSION}-{_modules_hash()[:16]}"
    try:
        return _ensure(_cache_root() / folder_name, name)
    except OSError as error:
        fallback = Path(tempfile.gettempdir()) / f"shardyard-{os.getuid()}" / "corpora"
        log.warning("the cache folder cannot be written (%s); %s is used instead", error, fallback)
        return _ensure(fallback / folder_name, name)


def _cache_root() -> Path:
    configured = os.environ.get("SHARDYARD_CACHE")
    return (Path(configured).expanduser() if configured else Path.home() / ".cache" / "shardyard") / "corpora"


def _ensure(folder: Path, name: str) -> Path:
    """Return `folder`; if incomplete, build it in a temporary folder and rename that. Safe for concurrent processes."""
    if _is_complete(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with _PARSING:
            documents = list(CORPORA[name](_modules()))
        _write(aside, name, documents)
        if folder.exists() and not _is_complete(folder):
            shutil.rmtree(folder, ignore_errors=True)
        try:
            aside.rename(folder)
        except OSError:
            if not _is_complete(folder):  # Not a concurrent builder: the file system refuses.
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def _is_complete(folder: Path) -> bool:
    try:
        sizes = json.loads((folder / "manifest.json").read_text())["file_bytes"]
        return all((folder / file).stat().st_size == size for file, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def _write(folder: Path, name: str, documents: list[Document]) -> None:
    documents = list({document.text: document for document in reversed(documents)}.values())[::-1]
    sides: dict[str, list[Document]] = {"train": [], "validation": []}
    for document in documents:
        sides[split_of(document.key)].append(document)
    assert len(sides["train"]) >= TRAIN_SHARDS, f"{name}: no shard may be empty"
    assert sides["validation"], f"{name}: nothing is held out"
    for split, shards in (("train", _spread(sides["train"], TRAIN_SHARDS)), ("validation", [sides["validation"]])):
        for index, shard in enumerate(shards):
            columns = {"id": [document.id for document in shard], "text": [document.text for document in shard]}
            path = folder / f"{split}-{index:05d}-of-{len(shards):05d}.parquet"
            pq.write_table(pa.table(columns), path, row_group_size=ROWS_PER_GROUP)
    manifest = {
        "fingerprint": asdict(_fingerprint(name, sides)),
        "file_bytes": {path.name: path.stat().st_size for path in sorted(folder.glob("*.parquet"))},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))
    folder.chmod(0o755)


def _spread(documents: list[Document], count: int) -> list[list[Document]]:
    """`count` shards of about equal size in characters: greedily, the longest document into the smallest shard."""
    shards: list[list[Document]] = [[] for _ in range(count)]
    loads = [(0, index) for index in range(count)]
    for document in sorted(documents, key=lambda document: (-len(document.text), document.id)):
        load, index = heapq.heappop(loads)
        shards[index].append(document)
        heapq.heappush(loads, (load + len(document.text), index))
    return [sorted(shard, key=lambda document: document.id) for shard in shards]


def _fingerprint(name: str, sides: dict[str, list[Document]]) -> Fingerprint:
    digest = hashlib.sha256()
    for side in sides.values():
        for document in side:
            digest.update(f"{document.id}\0{document.text}\0".encode())
    return Fingerprint(
        corpus=name,
        python=platform.python_version(),
        builder=BUILDER_VERSION,
        sha256=digest.hexdigest(),
        num_documents=len(sides["train"]),
        num_validation_documents=len(sides["validation"]),
        num_bytes=sum(len(document.text.encode()) for document in sides["train"]),
    )


def _modules() -> list[Module]:
    """The modules of the standard library, sorted by name; their sources are read but never imported."""
    root, paths = _library()
    return [Module(_module_name(path.relative_to(root)), _read_source(path)) for path in paths]


def _library() -> tuple[Path, list[Path]]:
    root, paths = Path(sysconfig.get_paths()["stdlib"]), []
    for folder, inner, names in os.walk(root):
        inner[:] = [name for name in inner if name not in _EXCLUDED]
        paths += [Path(folder, name) for name in names if name.endswith(".py") and name not in _EXCLUDED]
    if len(paths) < TRAIN_SHARDS:
        raise DataError(
            f"the embedded corpora need the sources of Python's standard library, which are not in {root}; "
            "use a complete Python, or data of your own with `path`."
        )
    return root, sorted(paths)


def _module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _read_source(path: Path) -> str:
    with tokenize.open(path) as file:
        return file.read()


@functools.cache
def _modules_hash() -> str:
    digest = hashlib.sha256()
    root, paths = _library()
    for path in paths:
        digest.update(f"{_module_name(path.relative_to(root))}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _docs(modules: list[Module]) -> Iterator[Document]:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DataError(
            "python-docs needs the module pydoc_data.topics, which this Python lacks; "
            "use python-docstrings, or a complete Python."
        ) from error
    for name, text in sorted(topics.items()):
        yield from _parts(f"topic:{name}", name, text)
    for module in modules:
        text = _module_docstring(module.source)
        if len(text) >= LEAST_MODULE_DOCSTRING:
            yield from _parts(f"module:{module.name}", module.name, text)


def _parts(id_: str, key: str, text: str) -> Iterator[Document]:
    """The text in parts of about `PART_CHARACTERS`, cut between paragraphs."""
    part: list[str] = []
    size = number = 0
    for paragraph in text.strip("\n").split("\n\n"):
        if part and size + len(paragraph) > PART_CHARACTERS:
            yield Document(f"{id_}#{number}", key, "\n\n".join(part) + "\n")
            part, size, number = [], 0, number + 1
        part.append(paragraph)
        size += len(paragraph) + 2
    yield Document(f"{id_}#{number}", key, "\n\n".join(part) + "\n")


def _module_docstring(source: str) -> str:
    """The module docstring, found with a regular expression: parsing all eleven megabytes would take seconds."""
    match = _MODULE_DOCSTRING.match(source)
    return str(ast.literal_eval(match.group(1))) if match else ""


def _docstrings(modules: list[Module]) -> Iterator[Document]:
    for module in modules:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Old escapes in the library's own strings.
            tree = ast.parse(module.source)
        seen: dict[str, int] = {}
        for name, node in _definitions(tree, module.name):
            text = ast.get_docstring(node)
            if text:
                seen[name] = seen.get(name, 0) + 1
                yield Document(f"{name}#{seen[name]}", module.name, f"{_signature(name, node)}\n\n{text}\n")


Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def _definitions(node: ast.AST, prefix: str) -> Iterator[tuple[str, Definition]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Definition):
            name = f"{prefix}.{child.name}"
            yield name, child
            yield from _definitions(child, name)
        else:
            yield from _definitions(child, prefix)


def _signature(name: str, node: Definition) -> str:
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return f"class {name}({bases})" if bases else f"class {name}"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{'async ' if isinstance(node, ast.AsyncFunctionDef) else ''}def {name}({ast.unparse(node.args)}){returns}"


def _code(modules: list[Module]) -> Iterator[Document]:
    for module in modules:
        if module.source.strip():
            yield Document(module.name, module.name, module.source)


CORPORA: dict[str, Callable[[list[Module]], Iterable[Document]]] = {
    "python-docs": _docs,
    "python-docstrings": _docstrings,
    "python-code": _code,
}
