"""Low-rank adapters on the linear layers of a pretrained model, and merging them into its weights.

Hu et al. 2021 (LoRA): W + (alpha / r)·B·A, of which only A [r, I] and B [O, r] are trained; B starts at zero, so
training starts from the pretrained model itself.

    I: inputs, O: outputs of a linear layer, r: rank
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from shardyard.errors import ModelError
from shardyard.models.adapters.nf4 import NF4Linear, dequantize
from shardyard.models.pretrained import matching
from shardyard.objectives.registry import objective_spec
from shardyard.recipe.schema import Adapter
from shardyard.suggest import suggestion

_NAME = "default"


def attach(model: PreTrainedModel, adapter: Adapter, *, objective: str, seed: int) -> None:
    """Freeze a model and add adapters whose initial weights depend only on seed and name, in place.

    Args:
        model: with its pretrained weights, whole.
        adapter: the recipe's section.
        objective: decides whether the head is trained too.
        seed: the recipe's seed.

    Raises:
        ModelError: a target is not a linear layer of the model, or a pattern of `modules_to_save` matches nothing.
    """
    names, layers = target_names(model, adapter), _adaptable(model, adapter)
    trained = [parameter for _, parameter in _fully_trained(model, adapter, objective)]
    model.requires_grad_(False)
    if adapter.quantize is not None:
        for name in layers:
            _quantize(model, name)
    transposed = any(isinstance(model.get_submodule(name), Conv1D) for name in names)
    from peft import LoraConfig, inject_adapter_in_model  # Takes half a second; only adapters need it.

    settings = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=names,
        fan_in_fan_out=transposed,
    )
    with warnings.catch_warnings():
        # For a model with both kinds of linear layers, peft sets this for each layer and warns about it.
        warnings.filterwarnings("ignore", message="fan_in_fan_out")
        inject_adapter_in_model(settings, model, _NAME)
    for parameter in trained:
        parameter.requires_grad_(True)
    _initialise(model, seed)


def num_trainable(model: PreTrainedModel, adapter: Adapter, objective: str) -> int:
    """Number of parameters that `attach` leaves trainable, counted from shapes only."""
    adapters = sum(adapter.rank * sum(_shape(model, name)) for name in target_names(model, adapter))
    return adapters + sum(parameter.numel() for _, parameter in _fully_trained(model, adapter, objective))


def num_quantized(model: PreTrainedModel, adapter: Adapter) -> int:
    """Number of weights that `attach` quantises to 4 bits."""
    return 0 if adapter.quantize is None else sum(math.prod(_shape(model, name)) for name in _adaptable(model, adapter))


def target_names(model: PreTrainedModel, adapter: Adapter) -> list[str]:
    """Full names of the layers that get an adapter.

    Raises:
        ModelError: a target of the recipe is not a linear layer of the model.
    """
    layers = _adaptable(model, adapter)
    if not adapter.targets:
        return layers
    chosen: dict[str, None] = {}
    for target in adapter.targets:
        matched = [name for name in layers if name == target or name.endswith(f".{target}")]
        if not matched:
            known = {name.rpartition(".")[2] for name in layers}
            raise ModelError(
                f"model.adapter.targets: no linear layer is called {target!r}; {suggestion(target, known)}"
            )
        chosen.update(dict.fromkeys(matched))
    return [name for name in layers if name in chosen]


def merged(weights: Mapping[str, Tensor], adapter: Adapter, model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights of a plain model that computes the same as the adapted one, in their own precision.

    Args:
        weights: of the adapted model, by name.
        adapter: the recipe's section.
        model: the plain model, for shapes; it may be on the meta device.
    """
    precision = next((t.dtype for name, t in weights.items() if ".lora_A." in name), torch.float32)
    result: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if ".lora_" in name or name.endswith(".scales"):
            continue
        layer, _, kind = name.replace(".base_layer.", ".").rpartition(".")
        base = _dequantized(weights, name, model.get_submodule(layer)) if kind == "codes" else tensor
        if f"{layer}.lora_A.{_NAME}.weight" in weights and kind in ("weight", "codes"):
            base = base.float() + _update(weights, layer, adapter, model)
        result[f"{layer}.{'weight' if kind == 'codes' else kind}"] = base.to(precision)
    return result


def _update(weights: Mapping[str, Tensor], layer: str, adapter: Adapter, model: PreTrainedModel) -> Tensor:
    down, up = (weights[f"{layer}.lora_{part}.{_NAME}.weight"].float() for part in "AB")
    update = adapter.alpha / adapter.rank * (up @ down)  # [O, I]
    return update.T if isinstance(model.get_submodule(layer), Conv1D) else update


def _dequantized(weights: Mapping[str, Tensor], name: str, layer: nn.Module) -> Tensor:
    """The weight [O, I], or [I, O] for a Conv1D. ZeRO-3 checkpoints store the bytes as floats."""
    codes, scales = (weights[name.removesuffix("codes") + part].to(torch.uint8) for part in ("codes", "scales"))
    assert isinstance(layer.weight, Tensor)
    if isinstance(layer, Conv1D):
        return dequantize(codes, scales, layer.weight.T.shape).T
    return dequantize(codes, scales, layer.weight.shape)


def _adaptable(model: PreTrainedModel, adapter: Adapter) -> list[str]:
    """The linear layers of the body that are not fully trained."""
    full = set(_fully_trained_names(model, adapter))
    return [name for name in _linear_layers(model) if f"{name}.weight" not in full]


def _fully_trained_names(model: PreTrainedModel, adapter: Adapter) -> list[str]:
    return matching(
        (name for name, _ in model.named_parameters()), adapter.modules_to_save, "model.adapter.modules_to_save"
    )


def _linear_layers(model: PreTrainedModel) -> list[str]:
    """Names of all linear layers of the body, without the objective's head."""
    kinds = (nn.Linear, Conv1D)
    body = {id(module) for module in model.base_model.modules()}
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, kinds) and id(module) in body and module is not head
    ]


def _shape(model: PreTrainedModel, name: str) -> tuple[int, int]:
    weight = model.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    return (int(weight.shape[0]), int(weight.shape[1]))


def _fully_trained(model: PreTrainedModel, adapter: Adapter, objective: str) -> list[tuple[str, nn.Parameter]]:
    """The parameters of the modules that the recipe names, and of a new head of the objective outside the body."""
    chosen = set(_fully_trained_names(model, adapter))
    body = {id(parameter) for parameter in model.base_model.parameters()}
    new_head = objective_spec(objective).new_head
    return [
        (name, parameter)
        for name, parameter in model.named_parameters()
        if name in chosen or (new_head and id(parameter) not in body)
    ]


def _quantize(model: PreTrainedModel, name: str) -> None:
    layer = model.get_submodule(name)
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if isinstance(layer, Conv1D):
        weight = weight.T  # a Conv1D holds [I, O]
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, NF4Linear(weight, layer.bias))


def _initialise(model: nn.Module, seed: int) -> None:
    """Initialise each A as in the paper's code (Kaiming uniform, a = √5), from its own generator; B is already zero."""
    for name, parameter in model.named_parameters():
        if ".lora_A." in name:
            digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
            generator = torch.Generator(device=parameter.device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            nn.init.kaiming_uniform_(parameter.data, a=math.sqrt(5), generator=generator)
