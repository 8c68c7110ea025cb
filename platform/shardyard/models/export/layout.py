"""Which weights of a model go to which file of an export, worked out from shapes alone, the same on every rank.

A model of one file is `model.safetensors`; a larger one is `model-0000i-of-0000n.safetensors` and an index, as
transformers reads and writes them. A shard belongs to one rank, which writes it piece by piece.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from shardyard.errors import ModelError
from shardyard.models.quirks import saved_together

INDEX = "model.safetensors.index.json"
_PATTERN = "model{suffix}.safetensors"
# Weights are read and written in pieces of at most this size, or of one weight that is larger: many small ones do not
# wait for each other, and a rank holds no more at once.
PIECE_BYTES = 16 << 20


@dataclass(frozen=True)
class Unit:
    """Weights that can only be converted together.

    sources: their names where they come from. outputs: what is written, by name (meta). make: these from those.
    as_it_is: whether it is one weight whose numbers are written in their order.
    """

    sources: tuple[str, ...]
    outputs: Mapping[str, Tensor]
    make: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
    as_it_is: bool = False


@dataclass(frozen=True)
class Piece:
    """Units that are read together, and the ranks that write a part of them."""

    units: tuple[Unit, ...]
    writers: frozenset[int]

    @property
    def sources(self) -> list[str]:
        """The names of all weights that are read, each once."""
        return list(dict.fromkeys(name for unit in self.units for name in unit.sources))

    @property
    def large(self) -> tuple[str, str] | None:
        """Of a piece that is one large weight as it is: its name where it comes from, and in the file."""
        if len(self.units) > 1 or not self.units[0].as_it_is or _nbytes(self.units[0]) <= PIECE_BYTES:
            return None
        return self.units[0].sources[0], next(iter(self.units[0].outputs))


@dataclass(frozen=True)
class Layout:
    """The files of an export.

    shards: file name → its tensors (meta), in the order in which they are in the file. writer: file name → rank.
    pieces: what is read and written, in order; ranks write at the same time, each its own shards.
    """

    shards: Mapping[str, Mapping[str, Tensor]]
    writer: Mapping[str, int]
    pieces: Sequence[Piece]

    @property
    def size_bytes(self) -> int:
        """Size of all weights."""
        return sum(tensor.nbytes for shard in self.shards.values() for tensor in shard.values())


def make_layout(units: Sequence[Unit], *, shard_bytes: int, ranks: int) -> Layout:
    """Deal the files to the ranks.

    Args:
        shard_bytes: largest size of a file, unless a single weight is larger.
    """
    outputs = {name: tensor for unit in units for name, tensor in unit.outputs.items()}
    split = split_state_dict_into_shards_factory(
        outputs, get_storage_size=lambda tensor: tensor.nbytes, filename_pattern=_PATTERN, max_shard_size=shard_bytes
    )
    # Wide types first, so that each tensor begins at a multiple of its width.
    shards = {
        file: {name: outputs[name] for name in sorted(names, key=lambda name: -outputs[name].itemsize)}
        for file, names in split.filename_to_tensors.items()
    }
    count = len(shards)
    writer = {file: at * ranks // count if count < ranks else at % ranks for at, file in enumerate(shards)}
    return Layout(shards, writer, _pieces(units, shards, writer))


def _pieces(
    units: Sequence[Unit], shards: Mapping[str, Mapping[str, Tensor]], writer: Mapping[str, int]
) -> list[Piece]:
    """Units in an order in which every rank has about equally much to write at any time."""
    file_of = {name: file for file, names in shards.items() for name in names}
    turn: dict[int, int] = defaultdict(int)
    turns: dict[str, int] = {}
    for file in shards:
        turns[file] = turn[writer[file]]
        turn[writer[file]] += 1
    found: list[tuple[tuple[int, int, int], Piece]] = []
    waiting: dict[str, list[Unit]] = defaultdict(list)
    written: dict[str, int] = defaultdict(int)

    def close(file: str) -> None:
        if gathered := waiting.pop(file, None):
            place = (turns[file], written[file], writer[file])
            written[file] += sum(map(_nbytes, gathered))
            found.append((place, Piece(tuple(gathered), frozenset({writer[file]}))))

    for unit in units:
        files = dict.fromkeys(file_of[name] for name in unit.outputs)
        if len(files) != 1:
            # Its weights are in several files, whose writers all read it.
            for file in files:
                close(file)
            first = next(iter(files))
            place = (turns[first], written[first], writer[first])
            found.append((place, Piece((unit,), frozenset(writer[file] for file in files))))
            continue
        (file,) = files
        if sum(map(_nbytes, (*waiting[file], unit))) > PIECE_BYTES:
            close(file)
        waiting[file].append(unit)
    for file in list(waiting):
        close(file)
    return [piece for _, piece in sorted(found, key=lambda one: one[0])]


def _nbytes(unit: Unit) -> int:
    return sum(tensor.nbytes for tensor in unit.outputs.values())


def units_of(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> list[Unit]:
    """What `save_pretrained` writes of a model with these weights, unit by unit.

    Args:
        model: on the meta device; it gets the weights, without values.
        tensors: shape and precision of every weight by name (meta).

    Raises:
        ModelError: the weights do not fit the model.
    """
    sources = _fitted(model, tensors)
    kept = remove_tied_weights_from_state_dict(model.state_dict(), model)
    scalars = {name for name, tensor in kept.items() if tensor.dim() == 0}
    units = []
    for together in saved_together(model, kept):
        from_source = {name: sources[name] for name in together.names}
        make = partial(_make, from_source, frozenset(scalars), together.convert)
        units.append(Unit(tuple(dict.fromkeys(from_source.values())), together.outputs, make, together.renames))
    return units


def units_of_names(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> list[Unit]:
    """Units of one weight each: name in the file → name where it comes from; `tensors` (meta) by name in the file."""
    units = []
    for name, source in names.items():
        make = partial(_reshaped, name, source, tensors[name].shape)
        units.append(Unit((source,), {name: tensors[name]}, make, as_it_is=True))
    return units


def _reshaped(name: str, source: str, shape: torch.Size, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: weights[source].reshape(shape)}


def _make(
    from_source: Mapping[str, str],
    scalars: frozenset[str],
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    weights: Mapping[str, Tensor],
) -> Mapping[str, Tensor]:
    given = {name: weights[source] for name, source in from_source.items()}
    return convert({name: tensor.reshape(()) if name in scalars else tensor for name, tensor in given.items()})


def _fitted(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Give a model weights without values, and tie them; returns the source of each of its weights, by name."""
    scalars = {name for name, parameter in model.named_parameters() if parameter.dim() == 0}
    shaped = {name: tensor.reshape(()) if name in scalars else tensor for name, tensor in tensors.items()}
    # Buffers that are not saved, such as rotary frequencies, have no weights here; loading recomputes them.
    try:
        problems = model.load_state_dict(shaped, strict=False, assign=True)
    except RuntimeError as error:
        raise ModelError(f"the weights do not fit the configuration: {' '.join(str(error).split())}") from error
    given = {id(tensor): name for name, tensor in _named(model) if name in tensors}
    model.tie_weights()
    sources = {name: given.get(id(tensor)) for name, tensor in _named(model)}
    saved = model.state_dict().keys()
    missing = [name for name in sources if name in saved and sources[name] is None]
    if missing or problems.unexpected_keys:
        raise ModelError(
            f"the weights do not fit the configuration: missing {missing[:3]}, unexpected "
            f"{problems.unexpected_keys[:3]}"
        )
    return {name: source for name, source in sources.items() if source is not None}


def _named(model: PreTrainedModel) -> Iterable[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)
