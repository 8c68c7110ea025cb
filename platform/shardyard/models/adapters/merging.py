"""Merging adapters into the weights they adapt.

O: outputs, I: inputs of a layer; E: experts that one tensor stacks; r: rank
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from shardyard.models.adapters.quantized import FORMATS
from shardyard.models.adapters.targets import Target, adaptable, places, selected
from shardyard.models.weight_source import Derived
from shardyard.recipe.schema import Adapter

_BASE = ".base_layer"
_A, _B, _MAGNITUDE = (f".lora_{part}.default.weight" for part in ("A", "B", "magnitude_vector"))


def merging(tensors: Mapping[str, Tensor], adapter: Adapter, model: PreTrainedModel) -> dict[str, Derived]:
    """The weights of a plain model that computes the same as the adapted one, in the precision of the adapter, each
    from the weights of the adapted model that it needs.

    Args:
        tensors: of the adapted model, by name; only their shapes and precisions count.
        adapter: the recipe's section.
        model: the plain model, for shapes; it may be on the meta device.
    """
    precision = next((tensor.dtype for name, tensor in tensors.items() if name.endswith(_A)), torch.float32)
    found = _places(tensors, adapter, model)
    result: dict[str, Derived] = {}
    for name, tensor in tensors.items():
        if ".lora_" in name or name.endswith(".scales"):
            continue
        plain, needed, shape = name.replace(_BASE, ""), [name], tensor.shape
        if name.endswith(".codes"):
            plain = f"{plain.removesuffix('codes')}weight"
            needed.append(f"{name.removesuffix('codes')}scales")
            shape = model.get_parameter(plain).shape
        if plain in found:
            parts = [f"{found[plain][1]}{part}" for part in (_A, _B, _MAGNITUDE)]
            needed += [part for part in parts if part in tensors]
        like = torch.empty(shape, dtype=precision, device="meta")
        compute = partial(_plain, name=name, plain=plain, place=found.get(plain), adapter=adapter, model=model)
        result[plain] = Derived(tuple(needed), partial(_in, precision, compute), like)
    return result


def merged(weights: Mapping[str, Tensor], adapter: Adapter, model: PreTrainedModel) -> dict[str, Tensor]:
    """All weights of the plain model at once."""
    return {name: derived.compute(weights) for name, derived in merging(weights, adapter, model).items()}


def _plain(
    weights: Mapping[str, Tensor],
    *,
    name: str,
    plain: str,
    place: tuple[Target, str] | None,
    adapter: Adapter,
    model: PreTrainedModel,
) -> Tensor:
    """The weight `plain` from that of the adapted model `name`, in fp32 if it has an adapter."""
    base = weights[name]
    if name.endswith(".codes"):
        base = _dequantized(weights, name, model.get_submodule(plain.removesuffix(".weight")), adapter)
    return base if place is None else _adapted(base.float(), weights, *place, adapter, model)


def _in(
    precision: torch.dtype, compute: Callable[[Mapping[str, Tensor]], Tensor], weights: Mapping[str, Tensor]
) -> Tensor:
    return compute(weights).to(precision)


def _places(weights: Collection[str], adapter: Adapter, model: PreTrainedModel) -> dict[str, tuple[Target, str]]:
    """Which weights have an adapter: name of the plain weight → target, and the name before `.lora_A`.

    Runs from before experts and routers were told apart adapted other layers by default: what is there counts.
    """
    layers = [target for target in adaptable(model, adapter) if not target.stacked]
    targets = [*layers, *(target for target in selected(model, adapter) if target.stacked)]
    found = places(targets)
    return {target.weight: (target, found[target.name]) for target in targets if f"{found[target.name]}{_A}" in weights}


def _adapted(
    base: Tensor, weights: Mapping[str, Tensor], target: Target, place: str, adapter: Adapter, model: PreTrainedModel
) -> Tensor:
    """The weight in fp32 with its update, in the layout of `base`."""
    down, up = weights[f"{place}{_A}"].float(), weights[f"{place}{_B}"].float()  # [r, I] and [O, r]
    if target.stacked:
        return base + adapter.scale * _stacked_update(down, up, target, model)
    transposed = isinstance(model.get_submodule(target.name), Conv1D)
    whole = (base.T if transposed else base) + adapter.scale * (up @ down)  # [O, I]
    magnitude = weights.get(f"{place}{_MAGNITUDE}")
    if magnitude is not None:
        whole = whole * (magnitude.float() / whole.norm(dim=1))[:, None]
    return whole.T if transposed else whole


def _stacked_update(down: Tensor, up: Tensor, target: Target, model: PreTrainedModel) -> Tensor:
    """B·A of each expert, in the layout of the parameter. peft keeps A as [E·r, I] and B as [O, r·E]."""
    experts = target.shape[0]
    a = down.reshape(experts, -1, down.shape[-1])  # [E, r, I]
    b = up.reshape(up.shape[0], -1, experts)  # [O, r, E]
    module = model.get_submodule(target.name.rpartition(".")[0])
    inputs_first = bool(getattr(module, "is_transposed", False))
    return torch.einsum("ore, eri -> eio" if inputs_first else "ore, eri -> eoi", b, a)


def _dequantized(weights: Mapping[str, Tensor], name: str, layer: nn.Module, adapter: Adapter) -> Tensor:
    """The weight [O, I], or [I, O] for a Conv1D. ZeRO-3 checkpoints store the bytes as floats."""
    assert adapter.quantize is not None
    assert isinstance(layer.weight, Tensor)
    dequantize = FORMATS[adapter.quantize].dequantized
    codes = weights[name].to(torch.uint8 if adapter.quantize == "nf4" else torch.int8)
    scales = weights[f"{name.removesuffix('codes')}scales"].to(torch.uint8)
    if isinstance(layer, Conv1D):
        return dequantize(codes, scales, layer.weight.T.shape).T
    return dequantize(codes, scales, layer.weight.shape)
