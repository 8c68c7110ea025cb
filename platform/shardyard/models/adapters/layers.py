"""Layers with adapters: peft's for linear layers, and one for stacked experts. Imports peft, which is slow.

E: experts, r: rank
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from shardyard.models.adapters.targets import Target
from shardyard.recipe.schema import Adapter

NAME = "default"


def lora_config(model: nn.Module, adapter: Adapter, targets: Sequence[Target]) -> LoraConfig:
    """peft's configuration of an adapter section."""
    layers = [target.name for target in targets if not target.stacked]
    return LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        use_rslora=adapter.rslora,
        use_dora=adapter.dora,
        init_lora_weights=True if adapter.init == "kaiming" else adapter.init,
        target_modules=layers,
        target_parameters=[target.name for target in targets if target.stacked] or None,
        fan_in_fan_out=any(isinstance(model.get_submodule(name), Conv1D) for name in layers),
    )


def inject(model: PreTrainedModel, adapter: Adapter, targets: Sequence[Target], seed: int) -> None:
    """Add the layers of an adapter to a model, in place. `seed` is for approximate singular vectors."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # For a model with both kinds of linear layers, peft sets this for each layer and warns about it.
        warnings.filterwarnings("ignore", message="fan_in_fan_out")
        inject_adapter_in_model(lora_config(model, adapter, targets), model, NAME)
    for module in model.modules():
        if type(module) is ParamWrapper:
            module.__class__ = StackedLora


def outside_parameters(model: nn.Module) -> Iterator[tuple[nn.Module, list[nn.Parameter]]]:
    """Modules of an adapted model with the parameters that they read although other modules have them.

    ZeRO-3 gathers only a module's own parameters for its passes, and has to know of these.
    """
    for module in model.modules():
        if isinstance(module, StackedLora):
            halves = [module.lora_A[NAME].weight, module.lora_B[NAME].weight]
            yield module, [*halves, module.get_param()]
        elif isinstance(module, LoraLayer) and module.lora_variant:
            frozen = list(module.get_base_layer().parameters())
            yield module, frozen
            yield module.lora_magnitude_vector[NAME], frozen


class StackedLora(ParamWrapper):  # type: ignore[misc]
    """Experts of which one parameter has an adapter; experts with two adapted parameters have two of these, nested.

    peft's forward pass registers a parametrisation, which moves the parameter to another module for the time of the
    pass. ZeRO-3 then no longer gathers it. Here the adapted weights hide the parameter for that time instead.
    """

    def __getattr__(self, name: str) -> Any:
        """The attribute of the wrapped experts, which the block around them may read."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The experts' output with the adapted weights."""
        if self.disable_adapters:
            return self.base_layer(*args, **kwargs)
        with hiding(self.get_base_layer(), {self.parameter_name: self.adapted()}):
            return self.base_layer(*args, **kwargs)

    def adapted(self) -> Tensor:
        """The parameter plus its update [E, …]."""
        left, right, scale = self.get_delta_factors(NAME)
        return torch.baddbmm(self.get_param(), left, right, alpha=scale)


@contextmanager
def hiding(module: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Context in which attributes of a module have other values; its registered parameters stay as they are."""
    own = vars(module)
    own.update(values)
    try:
        yield
    finally:
        for name in values:
            del own[name]
