"""The private names of transformers that reading weights in slices needs.

Needed for transformers 5.19 to 5.22; `tests/unit/models/test_slices.py` fails if a newer version has none of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, core_model_loading
from transformers.core_model_loading import (
    Chunk,
    Concatenate,
    MergeModulelist,
    SplitModulelist,
    Transpose,
    WeightConverter,
    WeightTransform,
)

from shardyard.replaced import replaced

# Operations that move values and compute none.
_MOVES = (Chunk, Concatenate, MergeModulelist, SplitModulelist, Transpose)


class WholeNeededError(Exception):
    """These weights cannot be read in slices; the text says why."""


class Conversion:
    """One conversion of transformers, ready to be repeated with tensors.

    moves_only: whether it only moves values. by_rows: whether row i of the result depends on the i-th tensors alone.
    """

    def __init__(self, transform: Any, layer: str, model: PreTrainedModel) -> None:
        self._transform, self._layer, self._model = copy.deepcopy(transform), layer, model
        operations = list(transform.operations)
        self.moves_only = all(type(one) in _MOVES for one in operations)
        self.by_rows = (
            len(transform.target_patterns) == 1
            and type(operations[0]) is MergeModulelist
            and operations[0].dim == 0
            and all(type(one) is Concatenate and one.dim > 0 for one in operations[1:])
        )

    def __call__(self, tensors: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
        """The results by name in the model, from the tensors of each pattern."""
        transform = copy.deepcopy(self._transform)
        transform.collected_tensors.update({pattern: list(found) for pattern, found in tensors.items()})
        made = transform.convert(self._layer, model=self._model, config=self._model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


class Read:
    """What transformers reads for one tensor of a model, or for several: names in the files by pattern.

    layer: the model's name of the (first) tensor. converted: whether more than a name changes.
    """

    def __init__(self, transform: Any, layer: str) -> None:
        self.transform, self.layer = transform, layer
        self.converted = isinstance(transform, WeightConverter)
        self.keys: dict[str, list[str]] = {}


def assign(model: PreTrainedModel, tensors: Mapping[str, Tensor], load_config: Any) -> tuple[Any, list[Read]]:
    """Let transformers assign tensors without values to a model without values.

    Returns:
        Its report of missing and unexpected names, and what it would read.
    """
    reads: dict[int, Read] = {}
    add = WeightTransform.add_tensor

    def noted(self: Any, target: str, key: str, pattern: str, tensor: object) -> None:
        read = reads.setdefault(id(self), Read(self, target))
        read.keys.setdefault(pattern, []).append(key)
        add(self, target, key, pattern, tensor)

    with replaced(WeightTransform, "add_tensor", noted):
        report, _ = core_model_loading.convert_and_load_state_dict_in_model(
            model=model,
            state_dict=dict(tensors),
            load_config=replace(load_config, device_map={"": "meta"}),
            disk_offload_index=None,
        )
    return report, list(reads.values())


@contextmanager
def reading_by(load: Callable[[PreTrainedModel, Sequence[str], Any], Any]) -> Iterator[None]:
    """Context in which `from_pretrained` finds files and builds a model without values, and `load` reads them.

    Args:
        load: called with the model, its weight files and transformers' settings; returns the report.
    """

    def read(model: PreTrainedModel, state: object, files: Sequence[str] | None, load_config: Any, *_: object) -> Any:
        if load_config.hf_quantizer is not None:
            raise WholeNeededError("they are quantised")
        if state is not None or not files:
            raise WholeNeededError("they are no safetensors files")
        return load(model, files, load_config), None

    before = vars(PreTrainedModel)["_load_pretrained_model"]  # with its decorator, which `getattr` would lose
    PreTrainedModel._load_pretrained_model = staticmethod(read)
    try:
        yield
    finally:
        PreTrainedModel._load_pretrained_model = before


def settle_ties(model: PreTrainedModel, report: Any, same: Callable[[str, str], bool]) -> None:
    """Tie weights of which the files hold both copies, if these are equal, as transformers does once it has read them.

    Args:
        same: whether two named weights are equal.
    """
    for target, source in list(model.all_tied_weights_keys.items()):
        if {target, source} & report.missing_keys:
            continue
        if same(target, source):
            report.missing_keys.add(target)
        else:
            del model.all_tied_weights_keys[target]


def keep(value: Tensor) -> Tensor:
    """The value of a buffer, marked so that the initialisation of missing weights does not overwrite it."""
    value._is_hf_initialized = True  # type: ignore[attr-defined]
    return value


def has_adapter(model: PreTrainedModel) -> bool:
    """Whether `from_pretrained` found an adapter beside the weights, and loaded it."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def no_values(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor with a shape alone."""
    return torch.empty(tuple(shape), dtype=dtype, device="meta")
