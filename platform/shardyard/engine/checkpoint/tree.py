"""Nested containers with tensors as JSON and a list of tensors, and back. Reading them calls nothing but what is here.

Values that JSON has stand for themselves; any other is an object with one key, its kind.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from torch import Tensor, nn

from shardyard.errors import CheckpointError

_DTYPES = {str(one).removeprefix("torch."): one for one in vars(torch).values() if isinstance(one, torch.dtype)}
_SCALERS: Mapping[str, type[Any]] = {"loss_scaler": LossScaler, "dynamic_loss_scaler": DynamicLossScaler}


def as_json(value: object, keep: Callable[[str, Tensor], object], at: str = "") -> object:
    """The value as JSON.

    Args:
        keep: called with the place of a tensor and the tensor; returns what stands for it.
        at: the place of the value, such as `optimizer/state/0`.

    Raises:
        CheckpointError: a value has no representation here.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Tensor):
        return {"parameter" if isinstance(value, nn.Parameter) else "tensor": keep(at, value)}
    if isinstance(value, Mapping):
        kind = "ordered" if isinstance(value, OrderedDict) else "dict"
        return {kind: [[as_json(key, keep, at), as_json(one, keep, f"{at}/{key}")] for key, one in value.items()]}
    if isinstance(value, list):
        return [as_json(one, keep, f"{at}/{number}") for number, one in enumerate(value)]
    if isinstance(value, tuple | set | frozenset):
        kind = "size" if isinstance(value, torch.Size) else "tuple" if isinstance(value, tuple) else "set"
        return {kind: [as_json(one, keep, f"{at}/{number}") for number, one in enumerate(value)]}
    return _plain(value, keep, at)


def _plain(value: object, keep: Callable[[str, Tensor], object], at: str) -> object:
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if isinstance(value, ZeroStageEnum):
        return {"zero_stage": int(value)}
    if isinstance(value, fragment_address):
        return {"fragment": [int(value.numel), int(value.start)]}
    for kind, scaler in _SCALERS.items():
        if type(value) is scaler:
            return {kind: as_json(value.__dict__, keep, at)}
    # Subclasses, such as those of enumerations, read as the plain value.
    for plain in (bool, int, float, str):
        if isinstance(value, plain):
            return plain(value)
    raise CheckpointError(
        f"a checkpoint cannot hold {at or 'the state'}, an object of {type(value).__module__}."
        f"{type(value).__qualname__}; it holds tensors and plain values"
    )


def from_json(value: object, tensor: Callable[[Any], Tensor]) -> Any:
    """What `as_json` was given.

    Args:
        tensor: makes a tensor of what stands for it.

    Raises:
        CheckpointError: the JSON holds a kind that is not known here.
    """
    if isinstance(value, list):
        return [from_json(one, tensor) for one in value]
    if not isinstance(value, dict):
        return value
    ((kind, held),) = value.items() if len(value) == 1 else ((None, None),)
    if kind == "tensor":
        return tensor(held)
    if kind == "parameter":
        return nn.Parameter(tensor(held), requires_grad=False)
    if kind in ("dict", "ordered"):
        pairs = [(from_json(key, tensor), from_json(one, tensor)) for key, one in cast("Sequence[Any]", held)]
        return dict(pairs) if kind == "dict" else OrderedDict(pairs)
    read = _KINDS.get(str(kind))
    if read is None:
        raise CheckpointError(f"a checkpoint holds a value of the kind {kind!r}, which this version does not know")
    return read(from_json(held, tensor))


def dtype_of(name: str) -> torch.dtype:
    """The type of that name, such as `bfloat16`.

    Raises:
        CheckpointError: torch has no such type.
    """
    if name not in _DTYPES:
        raise CheckpointError(f"a checkpoint holds tensors of {name!r}, which this torch does not know")
    return _DTYPES[name]


def _scaler(kind: str) -> Callable[[Mapping[str, object]], object]:
    def made(fields: Mapping[str, object]) -> object:
        scaler = object.__new__(_SCALERS[kind])
        scaler.__dict__.update(fields)
        return scaler

    return made


_KINDS: Mapping[str, Callable[[Any], object]] = {
    "tuple": tuple,
    "set": set,
    "size": torch.Size,
    "dtype": dtype_of,
    "device": torch.device,
    "zero_stage": ZeroStageEnum,
    "fragment": lambda held: fragment_address(numel=held[0], start=held[1]),
    **{kind: _scaler(kind) for kind in _SCALERS},
}
