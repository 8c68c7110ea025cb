"""Low-rank adapters on the weights of a pretrained model: attaching them, and counting them.

Hu et al. 2021 (LoRA): W + (alpha / r)·B·A, of which only A [r, I] and B [O, r] are trained; B starts at zero, so
training starts from the pretrained model itself.

    I: inputs, O: outputs of a linear layer, r: rank
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from shardyard.models.adapters.quantized import quantize_layer
from shardyard.models.adapters.saved import check_saved, load_saved
from shardyard.models.adapters.targets import adaptable, chosen, fully_trained_names
from shardyard.models.quirks import quiet_kernels
from shardyard.models.slices.sources import Sources
from shardyard.objectives.registry import objective_spec
from shardyard.recipe.schema import Adapter


def attach(
    model: PreTrainedModel, adapter: Adapter, *, objective: str, seed: int, sources: Sources | None = None
) -> None:
    """Freeze a model and add adapters whose initial weights depend only on seed and name, in place.

    Args:
        model: with its pretrained weights, whole.
        adapter: the recipe's section; without `dora`, and with `init: kaiming`, if there are `sources`.
        objective: decides whether the head is trained too.
        seed: the recipe's seed.
        sources: of the weights whose values have not been read; what an adapter changes is read here.

    Raises:
        ModelError: a target is no weight of the model, a pattern of `modules_to_save` matches nothing, or the adapter
            to continue from does not fit.
    """
    targets = chosen(model, adapter)
    if adapter.pretrained is not None:
        check_saved(adapter, targets)
    trained = [parameter for _, parameter in fully_trained(model, adapter, objective)]
    linear = [target.name for target in adaptable(model, adapter) if not target.stacked]
    model.requires_grad_(False)
    # PiSSA takes singular vectors out of the whole weights; what is left of them is quantised.
    before = adapter.init == "kaiming"
    if adapter.quantize is not None and before:
        for name in linear:
            if sources is not None:
                sources.fill(model.get_parameter(f"{name}.weight"))
            quantize_layer(model, name, adapter.quantize)
    quiet_kernels()
    from shardyard.models.adapters.layers import inject  # peft takes half a second; only adapters need it.

    inject(model, adapter, targets, seed)
    if adapter.quantize is not None and not before:
        for name in linear:
            adapted = hasattr(model.get_submodule(name), "base_layer")
            quantize_layer(model, f"{name}.base_layer" if adapted else name, adapter.quantize)
            model.get_submodule(name).fan_in_fan_out = False
    for parameter in trained:
        parameter.requires_grad_(True)
    if adapter.pretrained is not None:
        if sources is not None:
            for parameter in trained:
                sources.fill(parameter)
        load_saved(model, adapter, targets)
    elif adapter.init == "kaiming":
        _initialise(model, seed)


def read_outside(model: nn.Module) -> Iterator[tuple[nn.Module, list[nn.Parameter]]]:
    """Modules of an adapted model with the parameters that they read although other modules have them."""
    from shardyard.models.adapters.layers import outside_parameters

    return outside_parameters(model)


def num_trainable(model: PreTrainedModel, adapter: Adapter, objective: str) -> int:
    """Number of parameters that `attach` leaves trainable, counted from shapes only.

    Raises:
        ModelError: as `attach`.
    """
    targets = chosen(model, adapter)
    if adapter.pretrained is not None:
        check_saved(adapter, targets)
    adapters = sum(target.size(adapter.rank) for target in targets)
    if adapter.dora:
        adapters += sum(_outputs(model, target.name) for target in targets)
    return adapters + sum(parameter.numel() for _, parameter in fully_trained(model, adapter, objective))


def num_quantized(model: PreTrainedModel, adapter: Adapter) -> int:
    """Number of weights that `attach` quantises."""
    if adapter.quantize is None:
        return 0
    return sum(math.prod(target.shape) for target in adaptable(model, adapter) if not target.stacked)


def _outputs(model: PreTrainedModel, name: str) -> int:
    layer = model.get_submodule(name)
    assert isinstance(layer.weight, Tensor)
    return int(layer.weight.shape[1 if isinstance(layer, Conv1D) else 0])


def fully_trained(model: PreTrainedModel, adapter: Adapter, objective: str) -> list[tuple[str, nn.Parameter]]:
    """The parameters of the modules that the recipe names, and of a new head of the objective outside the body."""
    chosen_names = set(fully_trained_names(model, adapter))
    body = {id(parameter) for parameter in model.base_model.parameters()}
    new_head = objective_spec(objective).new_head
    return [
        (name, parameter)
        for name, parameter in model.named_parameters()
        if name in chosen_names or (new_head and id(parameter) not in body)
    ]


def _initialise(model: nn.Module, seed: int) -> None:
    """Initialise each A as in the paper's code (Kaiming uniform, a = √5), from its own generator; B is already zero."""
    for name, parameter in model.named_parameters():
        if ".lora_A." in name:
            digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
            generator = torch.Generator(device=parameter.device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            nn.init.kaiming_uniform_(parameter.data, a=math.sqrt(5), generator=generator)
