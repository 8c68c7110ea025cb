"""Writing the weights of a model as safetensors, by all ranks together, without any of them holding the model.

Each rank writes its shards with a thread of its own while the next weights are read. Ranks meet before each piece: none
begins a collective while the writer of the next piece is behind, so none waits in one for a slow disk, and all stop if
one of them cannot write.
"""

from __future__ import annotations

import errno
import json
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from shardyard import freed_memory
from shardyard.models.export.layout import INDEX, Layout, Piece
from shardyard.models.export.together import until_all
from shardyard.models.weight_source import InParts, Ranks, WeightSource

# Longest wait of a rank for its own disk before it tells the others that it still writes.
MEETING_SECONDS = 10.0
# After this many bytes a file is synced, so that no rank leaves the disk much work for the end.
_SYNC_BYTES = 1 << 30
# Source: the format's description and safetensors' own names of types.
TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class ShardFile:
    """One safetensors file, whose tensors are written one by one.

    Args:
        tensors: every tensor of the file (meta), in the order of the file.
    """

    def __init__(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        self._at: dict[str, int] = {}
        fields: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, tensor in tensors.items():
            self._at[name] = end
            end += tensor.nbytes
            offsets = [self._at[name], end]
            fields[name] = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        header = json.dumps(fields, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)
        self._begin = 8 + len(header)
        self._unsynced = 0
        self._left = set(tensors)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        self._write(len(header).to_bytes(8, "little") + header, 0)

    def write(self, name: str, tensor: Tensor) -> None:
        """Write one tensor at its place."""
        plain = tensor.detach().to("cpu").contiguous().reshape(-1)
        if plain.numel():
            self._write(plain.view(torch.uint8).numpy(), self._begin + self._at[name])
        self._left.remove(name)

    def write_part(self, name: str, first: int, part: Tensor) -> None:
        """Write numbers of a tensor from the `first` one of the flat tensor on."""
        self._write(part.view(torch.uint8).numpy(), self._begin + self._at[name] + first * part.itemsize)

    def is_whole(self, name: str) -> None:
        """All parts of a tensor are written."""
        self._left.remove(name)

    def close(self) -> None:
        """Close the file, which has all of its tensors."""
        assert not self._left, f"never written: {sorted(self._left)[:3]}"
        self.discard()

    def discard(self) -> None:
        """Close the file as it is."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _write(self, data: object, offset: int) -> None:
        view = memoryview(data).cast("B")  # type: ignore[arg-type]
        while view:
            done = os.pwrite(self._descriptor, view, offset)
            if done == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            view, offset = view[done:], offset + done
            self._unsynced += done
        if self._unsynced >= _SYNC_BYTES:
            os.fdatasync(self._descriptor)
            self._unsynced = 0


class _Writer:
    """Writes the shards of one rank, one piece at a time, in a thread."""

    def __init__(self, folder: Path, layout: Layout, rank: int) -> None:
        self._layout, self._folder = layout, folder
        self._names = {
            name: file for file, shard in layout.shards.items() if layout.writer[file] == rank for name in shard
        }
        self._files: dict[str, ShardFile] = {}
        self._left = {file: len(layout.shards[file]) for file in set(self._names.values())}
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="export")
        self._pending: Future[None] | None = None

    def start(self, piece: Piece, weights: Mapping[str, Tensor]) -> None:
        """Begin to write a piece; the one before it is done."""
        self._pending = self._pool.submit(self._write, piece, weights)

    def start_part(self, name: str, first: int, part: Tensor) -> None:
        """Begin to write a part of a weight; the one before it is done."""
        self._pending = self._pool.submit(self._write_part, name, first, part)

    def start_all(self, source: WeightSource, rank: int) -> None:
        """Begin to read and write all pieces of this rank, at its own pace."""
        self._pending = self._pool.submit(self._write_all, source, rank)

    def is_done(self, seconds: float) -> bool:
        """Whether what was begun is written, after waiting at most so long.

        Raises:
            OSError: it could not be written.
        """
        if self._pending is None:
            return True
        if not wait([self._pending], timeout=seconds).done:
            return False
        pending, self._pending = self._pending, None
        pending.result()
        return True

    def close(self) -> None:
        """End the thread; files that are not complete are closed as they are."""
        self._pool.shutdown(wait=True)
        for file in self._files.values():
            file.discard()

    def _write_all(self, source: WeightSource, rank: int) -> None:
        for piece in self._layout.pieces:
            if rank in piece.writers:
                self._write(piece, source.read(piece.sources, piece.writers))

    def _write(self, piece: Piece, weights: Mapping[str, Tensor]) -> None:
        for unit in piece.units:
            for name, tensor in unit.make(weights).items():
                if name in self._names:
                    self._write_tensor(self._names[name], name, tensor)

    def _write_tensor(self, file: str, name: str, tensor: Tensor) -> None:
        self._file(file).write(name, tensor)
        self._close_if_whole(file)

    def _write_part(self, name: str, first: int, part: Tensor) -> None:
        file = self._names[name]
        self._file(file).write_part(name, first, part)
        if first + part.numel() == self._layout.shards[file][name].numel():
            self._files[file].is_whole(name)
            self._close_if_whole(file)

    def _file(self, file: str) -> ShardFile:
        if file not in self._files:
            self._files[file] = ShardFile(self._folder / file, self._layout.shards[file])
        return self._files[file]

    def _close_if_whole(self, file: str) -> None:
        self._left[file] -= 1
        if not self._left[file]:
            self._files.pop(file).close()


def write_shards(folder: Path, layout: Layout, source: WeightSource, ranks: Ranks) -> None:
    """Write the shards of a model; all ranks call this, with a folder that all of them reach.

    Raises:
        OSError, ShardyardError: on all ranks, if one of them cannot write.
    """
    writer = _Writer(folder, layout, ranks.index)
    # Memory of a piece that is written is not kept beside that of the next.
    with freed_memory.returned():
        try:
            if source.collective:
                _write_together(writer, layout, source, ranks)
            else:
                writer.start_all(source, ranks.index)
            until_all(ranks, partial(writer.is_done, MEETING_SECONDS))
        finally:
            writer.close()


def _write_together(writer: _Writer, layout: Layout, source: WeightSource, ranks: Ranks) -> None:
    for large, pieces in _turns(layout.pieces, source):
        if isinstance(source, InParts) and large:
            _write_in_parts(pieces, writer, source, ranks)
            continue
        for piece in pieces:
            _wait_for(piece, writer, ranks)
            weights = source.read(piece.sources, piece.writers)
            if ranks.index in piece.writers:
                writer.start(piece, weights)
            # Only the writer keeps them, and no longer than it writes.
            del weights


def _turns(pieces: Sequence[Piece], source: WeightSource) -> Iterator[tuple[bool, list[Piece]]]:
    """Neighbouring pieces that go in parts and have different writers, and single others."""
    together: list[Piece] = []
    for piece in pieces:
        in_parts = isinstance(source, InParts) and piece.large is not None and source.goes_in_parts(piece.large[0])
        if together and not (in_parts and all(piece.writers.isdisjoint(other.writers) for other in together)):
            yield True, together
            together = []
        if in_parts:
            together.append(piece)
        else:
            yield False, [piece]
    if together:
        yield True, together


def _write_in_parts(pieces: Sequence[Piece], writer: _Writer, source: InParts, ranks: Ranks) -> None:
    """Write large weights, a part of each in turn: one rank writes while the next one receives."""
    left = [(piece, *piece.large) for piece in pieces if piece.large is not None]
    turns = deque((piece, into, source.parts(name, piece.writers)) for piece, name, into in left)
    while turns:
        piece, into, parts = turns.popleft()
        _wait_for(piece, writer, ranks)
        for first, part in islice(parts, 1):
            if part is not None:
                writer.start_part(into, first, part)
            turns.append((piece, into, parts))


def _wait_for(piece: Piece, writer: _Writer, ranks: Ranks) -> None:
    """Wait until the writers of a piece have written what they have begun."""
    own = ranks.index in piece.writers
    until_all(ranks, partial(writer.is_done, MEETING_SECONDS) if own else lambda: True)


def write_index(folder: Path, layout: Layout, *, parameters: int | None = None) -> None:
    """Write the index of a model of several files."""
    if len(layout.shards) == 1:
        return
    total = {"total_size": layout.size_bytes}
    metadata = total if parameters is None else {"total_parameters": parameters, **total}
    files = {name: file for file, shard in layout.shards.items() for name in shard}
    text = json.dumps({"metadata": metadata, "weight_map": files}, indent=2, sort_keys=True)
    (folder / INDEX).write_text(f"{text}\n", encoding="utf-8")
