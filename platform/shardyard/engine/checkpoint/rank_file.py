"""The one file of a rank in a checkpoint: what DeepSpeed would write in several, and the rank's random states.

It is a file of safetensors: any tool for them lists and reads its tensors. Its metadata hold, as JSON, the containers
around them (`tree.py`): one entry `member:NAME` for each file that DeepSpeed names.

    8 bytes    length of the header
    header     JSON: name of a tensor → precision, shape, place; padded with spaces
    tensors    those with the largest values first, so that each lies at a multiple of the size of its values
"""

from __future__ import annotations

import json
import struct
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from shardyard.engine.checkpoint.tree import as_json, dtype_of, from_json
from shardyard.errors import CheckpointError
from shardyard.models.export.shards import TYPES

SUFFIX = ".safetensors"
RANDOM = "random"
_MEMBER = "member:"
_LAYOUT = "shardyard.rank.1"
_ALIGNED_BYTES = 64
_LARGEST_HEADER_BYTES = 100_000_000
_STAGED_BYTES = 16 << 20


@dataclass
class _Block:
    """Consecutive values of one storage, which are written once: a 1-D tensor or one tensor's shape."""

    name: str
    values: Tensor
    number: int = 0
    offset: int = 0


@dataclass
class RankFile:
    """A rank's file before it is written. The tensors are views of those of the states: they must not change."""

    header: bytes
    blocks: list[_Block] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        """The size of the whole file."""
        return len(self.header) + sum(block.values.nbytes for block in self.blocks)

    def place_of(self, tensor: Tensor) -> int | None:
        """The first byte of a tensor in the file; None if it is not there as it is in memory."""
        if not tensor.is_contiguous():
            return None
        begin = int(tensor.storage_offset())
        for block in self._by_storage.get(_storage_of(tensor), ()):
            inside = begin - int(block.values.storage_offset())
            if inside >= 0 and inside + tensor.numel() <= block.values.numel():
                return len(self.header) + block.offset + inside * int(tensor.element_size())
        return None

    @cached_property
    def _by_storage(self) -> dict[tuple[object, ...], list[_Block]]:
        found: dict[tuple[object, ...], list[_Block]] = defaultdict(list)
        for block in self.blocks:
            if block.values.is_contiguous():
                found[_storage_of(block.values)].append(block)
        return found

    def buffers(self) -> Iterator[memoryview]:
        """The bytes of the file, without a copy where they lie in the memory of the host."""
        yield memoryview(self.header)
        for block in self.blocks:
            flat = block.values.detach().reshape(-1).view(torch.uint8)
            step = _STAGED_BYTES if flat.device.type != "cpu" else max(1, flat.numel())
            for begin in range(0, flat.numel(), step):
                yield memoryview(cast("Any", flat[begin : begin + step].cpu().numpy()))


def rank_file(members: Mapping[str, object], random: str) -> RankFile:
    """The file of a rank.

    Args:
        members: name of a file of DeepSpeed → its state, nested containers with tensors.
        random: the random states, as text.

    Raises:
        CheckpointError: a state holds more than tensors and plain values.
    """
    found = _Tensors()
    trees = {name: as_json(state, found.keep, name) for name, state in members.items()}
    blocks = found.blocks()
    metadata = {"format": "pt", "layout": _LAYOUT, RANDOM: random}
    metadata |= {f"{_MEMBER}{name}": json.dumps(found.placed(tree)) for name, tree in trees.items()}
    places: dict[str, object] = {"__metadata__": metadata}
    for block in blocks:
        places[block.name] = {
            "dtype": TYPES.get(block.values.dtype, "U8"),
            "shape": list(block.values.shape if block.values.dtype in TYPES else [block.values.nbytes]),
            "data_offsets": [block.offset, block.offset + block.values.nbytes],
        }
    text = json.dumps(places).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNED_BYTES)
    return RankFile(struct.pack("<Q", len(text)) + text, blocks)


class _Tensors:
    """The tensors of states, by the storages that they are views of."""

    def __init__(self) -> None:
        self._kept: list[tuple[str, Tensor]] = []
        self._places: list[tuple[_Block, int]] = []

    def keep(self, at: str, tensor: Tensor) -> int:
        self._kept.append((at, tensor.detach()))
        return len(self._kept) - 1

    def blocks(self) -> list[_Block]:
        """What is written, in order; tensors that overlap share a block."""
        by_storage: dict[tuple[object, ...], list[int]] = defaultdict(list)
        for number, (_, tensor) in enumerate(self._kept):
            by_storage[_storage_of(tensor) if tensor.numel() else (number,)].append(number)
        places: dict[int, tuple[_Block, int]] = {}
        for numbers in by_storage.values():
            places |= self._of_storage(numbers)
        self._places = [places[number] for number in range(len(self._kept))]
        unique = list({id(block): block for block, _ in self._places}.values())
        unique.sort(key=lambda block: -block.values.element_size())
        names: set[str] = set()
        offset = 0
        for number, block in enumerate(unique):
            block.number, block.offset = number, offset
            block.name = block.name if block.name not in names else f"{block.name}#{number}"
            names.add(block.name)
            offset += block.values.nbytes
        return unique

    def _of_storage(self, numbers: list[int]) -> dict[int, tuple[_Block, int]]:
        """Number of a tensor → its block, and its first value there."""
        found: dict[int, tuple[_Block, int]] = {}
        spans = sorted((int(self._kept[number][1].storage_offset()), number) for number in numbers)
        at = 0
        while at < len(spans):
            begin = end = spans[at][0]
            group: list[int] = []
            while at < len(spans) and (not group or spans[at][0] < end):
                tensor = self._kept[spans[at][1]][1]
                end = max(end, spans[at][0] + _extent(tensor))
                group.append(spans[at][1])
                at += 1
            name, first = self._kept[group[0]]
            alone = first.is_contiguous() and first.numel() == end - begin
            values = first if alone else first.as_strided((end - begin,), (1,), begin)
            block = _Block(name, values)
            found |= {number: (block, int(self._kept[number][1].storage_offset()) - begin) for number in group}
        return found

    def placed(self, tree: object) -> object:
        """A tree with the place of each tensor instead of its number."""
        if isinstance(tree, list):
            return [self.placed(one) for one in tree]
        if not isinstance(tree, dict):
            return tree
        ((kind, held),) = tree.items()
        if kind not in ("tensor", "parameter"):
            return {kind: self.placed(held)}
        (block, first), tensor = self._places[held], self._kept[held][1]
        begin = block.offset + first * tensor.element_size()
        dtype = str(tensor.dtype).removeprefix("torch.")
        return {kind: [dtype, begin, list(tensor.shape), list(tensor.stride())]}


def _storage_of(tensor: Tensor) -> tuple[object, ...]:
    """What tensors have in common that may share values."""
    return tensor.device, tensor.untyped_storage().data_ptr(), tensor.dtype


def _extent(tensor: Tensor) -> int:
    """Values of the storage from the first to the last one of a tensor."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return 1 + sum((size - 1) * stride for size, stride in steps) if tensor.numel() else 0


@dataclass(frozen=True)
class Header:
    """The header of a rank's file. `spans`: name of a tensor → first byte and the one after the last, in the file."""

    path: Path
    data_begin: int
    members: Mapping[str, str]
    random: str
    spans: Mapping[str, tuple[int, int]]


def read_header(path: Path) -> Header:
    """The header of a rank's file.

    Raises:
        CheckpointError: it is not such a file.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        text = file.read(length) if length <= _LARGEST_HEADER_BYTES else b""
    try:
        header = json.loads(text)
        metadata = header.pop("__metadata__")
        if metadata["layout"] != _LAYOUT:
            raise CheckpointError(f"{path} has the layout {metadata['layout']}; this version reads {_LAYOUT}")
        members = {name.removeprefix(_MEMBER): tree for name, tree in metadata.items() if name.startswith(_MEMBER)}
        begin = 8 + length
        spans = {name: (begin + one["data_offsets"][0], begin + one["data_offsets"][1]) for name, one in header.items()}
        return Header(path, begin, members, metadata[RANDOM], spans)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise CheckpointError(f"{path} is not the file of a rank: {error!r}") from error


def read_member(header: Header, name: str, *, copied: bool) -> Any:
    """The state that DeepSpeed would have in the file `name`.

    Args:
        copied: tensors have memory of their own; otherwise they are views of the file, mapped into memory.

    Raises:
        CheckpointError: the file has no such member, or a tensor reaches beyond its end.
    """
    if name not in header.members:
        raise CheckpointError(f"{header.path} holds no {name}")
    mapped = cast("Any", torch.UntypedStorage.from_file(str(header.path), False, header.path.stat().st_size))

    def tensor(held: Any) -> Tensor:
        dtype, begin, shape, stride = dtype_of(str(held[0])), int(held[1]), list(held[2]), list(held[3])
        at, rest = divmod(header.data_begin + begin, dtype.itemsize)
        if 0 in shape:
            return torch.empty_strided(shape, stride, dtype=dtype)
        last = at + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
        if rest or begin < 0 or min([*shape, *stride, 0]) < 0 or (last + 1) * dtype.itemsize > mapped.nbytes():
            raise CheckpointError(f"{header.path} has a tensor outside of the file")
        found = torch.empty(0, dtype=dtype).set_(mapped, at, shape, stride)
        return found.clone() if copied else found

    try:
        return from_json(json.loads(header.members[name]), tensor)
    except (ValueError, KeyError, TypeError, IndexError, RecursionError, RuntimeError) as error:
        raise CheckpointError(f"{header.path}: {name} cannot be read: {error!r}") from error
