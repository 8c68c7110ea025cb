"""Files that are hashed by blocks while they are written, so that a part of one can be verified without the rest.

Four threads each hash a block and write it, without the interpreter's lock; the page cache is passed by (`output.py`).
BLAKE3 takes a third of the time of SHA-256 (6.4 and 1.8 GB/s on one core of an AMD EPYC), which is used where no BLAKE3
is installed. Independent of torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardyard.engine.checkpoint.output import Output
from shardyard.errors import CheckpointError

BLOCK_BYTES = 16 << 20
BLAKE3, SHA256 = "blake3", "sha256"
ALGORITHMS = (BLAKE3, SHA256)
_HASHES: dict[str, Callable[[], Any]] = {SHA256: hashlib.sha256}
# Wheels of it exist for the usual platforms only; a checkpoint names the function that it was hashed with.
with contextlib.suppress(ImportError):
    from blake3 import blake3

    _HASHES[BLAKE3] = blake3
_CHUNK_BYTES = 1 << 22
_WRITERS = 4

Buffers = Sequence[memoryview]


@dataclass(frozen=True)
class FileEntry:
    """Size and hashes of one file.

    digests: in hexadecimal, one for each `block_bytes` of the file; `block_bytes` is None where one covers all of it.
    """

    size_bytes: int
    digests: tuple[str, ...]
    algorithm: str = SHA256
    block_bytes: int | None = None

    def fields(self) -> dict[str, object]:
        """The entry as JSON in a manifest."""
        if self.block_bytes is None:
            return {"size_bytes": self.size_bytes, self.algorithm: self.digests[0]}
        return {"size_bytes": self.size_bytes, "block_bytes": self.block_bytes, self.algorithm: list(self.digests)}

    @classmethod
    def of(cls, fields: Mapping[str, object]) -> FileEntry:
        """An entry of a manifest.

        Raises:
            CheckpointError: it has no hash of a kind that is known here, or not one for each block.
        """
        size, block = fields["size_bytes"], fields.get("block_bytes")
        algorithm = next((name for name in ALGORITHMS if name in fields), None)
        if algorithm is None or not isinstance(size, int) or not (block is None or isinstance(block, int)):
            raise CheckpointError(f"a file has the entry {sorted(fields)}, which this version cannot verify")
        found = fields[algorithm]
        digests = tuple(map(str, found)) if isinstance(found, list) else (str(found),)
        if len(digests) != (1 if not block else max(1, -(-size // block))):
            raise CheckpointError(f"a file of {size} bytes has {len(digests)} hashes in the manifest")
        return cls(size, digests, algorithm, block)

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """Begin and end of each block in bytes."""
        size = self.block_bytes or max(1, self.size_bytes)
        return [(at * size, min((at + 1) * size, self.size_bytes)) for at in range(len(self.digests))]


def written(path: Path, buffers: Iterable[memoryview], size_bytes: int = 0) -> FileEntry:
    """Write buffers one after the other, synced to the disk. What is being written must not change meanwhile.

    Args:
        size_bytes: of the file, if it is known: space is taken at once, and a full disk is found before it is written.

    Raises:
        OSError: the file could not be written; what there is of it is useless.
    """
    algorithm = BLAKE3 if BLAKE3 in _HASHES else SHA256
    waiting: deque[Future[tuple[int, str]]] = deque()
    done: list[tuple[int, str]] = []
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(Output(path, size_bytes))
        pool = stack.enter_context(ThreadPoolExecutor(_WRITERS, "write"))
        for number, block in enumerate(_blocks(buffers)):
            waiting.append(pool.submit(_write_hashed, file, number, block, algorithm))
            if len(waiting) > _WRITERS:
                done.append(waiting.popleft().result())
        done += [one.result() for one in waiting]
        size = sum(count for count, _ in done)
        file.finish(size)
    return FileEntry(size, tuple(digest for _, digest in done) or (_digest((), algorithm),), algorithm, BLOCK_BYTES)


def _write_hashed(file: Output, number: int, block: Buffers, algorithm: str) -> tuple[int, str]:
    digest = _digest(block, algorithm)
    file.write(block, number * BLOCK_BYTES)
    return sum(map(len, block)), digest


def damaged_blocks(path: Path, entry: FileEntry, numbers: Iterable[int] | None = None) -> list[int]:
    """Numbers of the blocks whose contents differ; all of those that are asked for if the file is not there or has
    another size.

    Raises:
        CheckpointError: the file was hashed by BLAKE3, which is not installed here.
    """
    wanted = list(range(len(entry.digests)) if numbers is None else numbers)
    try:
        if path.stat().st_size != entry.size_bytes:
            return wanted
        with path.open("rb") as file:
            return [one for one in wanted if _digest_of(file.fileno(), entry, one) != entry.digests[one]]
    except OSError:
        return wanted


def differing(entry: FileEntry, read: Callable[[int, int], bytes]) -> list[int]:
    """Numbers of the blocks of a file whose contents differ.

    Args:
        read: returns the bytes from a place up to another; larger blocks are read in parts.

    Raises:
        CheckpointError: the file was hashed by BLAKE3, which is not installed here.
    """
    part = BLOCK_BYTES
    wanted = zip(entry.ranges, entry.digests, strict=True)
    pieces = [(range(begin, end, part), end, digest) for (begin, end), digest in wanted]
    return [
        number
        for number, (places, end, digest) in enumerate(pieces)
        if _digest((read(at, min(at + part, end)) for at in places), entry.algorithm) != digest
    ]


def _digest_of(descriptor: int, entry: FileEntry, number: int) -> str:
    begin, end = entry.ranges[number]
    return _digest(_read(descriptor, begin, end), entry.algorithm)


def _read(descriptor: int, begin: int, end: int) -> Iterator[bytes]:
    while begin < end:
        chunk = os.pread(descriptor, min(_CHUNK_BYTES, end - begin), begin)
        if not chunk:
            return
        yield chunk
        begin += len(chunk)


def _digest(buffers: Iterable[bytes | memoryview], algorithm: str) -> str:
    if algorithm not in _HASHES:
        raise CheckpointError("the checkpoint is hashed with BLAKE3, which is not installed here: pip install blake3")
    digest = _HASHES[algorithm]()
    for buffer in buffers:
        digest.update(buffer)
    return str(digest.hexdigest())


def _blocks(buffers: Iterable[memoryview]) -> Iterator[Buffers]:
    """The same bytes in blocks of equal size, without a copy."""
    block: list[memoryview] = []
    room = BLOCK_BYTES
    for buffer in buffers:
        left = buffer.cast("B") if buffer.format != "B" or buffer.ndim != 1 else buffer
        while len(left):
            piece, left = left[:room], left[room:]
            block.append(piece)
            room -= len(piece)
            if not room:
                yield block
                block, room = [], BLOCK_BYTES
    if block:
        yield block


def discard(path: Path) -> None:
    """Remove a file that could not be written."""
    with contextlib.suppress(OSError):
        path.unlink()
