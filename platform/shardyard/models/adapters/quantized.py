"""Frozen linear layers whose weights are stored in fewer bits and dequantised for each pass.

O: outputs, I: inputs
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from shardyard.models.adapters import int8, nf4


class QuantizedLinear(nn.Linear):
    """A linear layer with a quantised weight, which is not trained.

    The weight is a buffer: ZeRO neither shards nor reduces it, and each rank holds the whole quantised weight.
    """

    codes: Tensor
    scales: Tensor

    def __init__(self, weight: Tensor, bias: nn.Parameter | None) -> None:
        """`weight` [O, I] is quantised; `bias` [O] is kept unchanged."""
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        codes, scales = self.quantized(weight)
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        self.register_parameter("bias", bias)

    @staticmethod
    def quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and scales of a weight."""
        raise NotImplementedError

    @staticmethod
    def dequantized(codes: Tensor, scales: Tensor, shape: torch.Size) -> Tensor:
        """The weight of codes and scales, in fp32."""
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The dequantised weight [O, I] in fp32."""
        return self.dequantized(self.codes, self.scales, torch.Size((self.out_features, self.in_features)))

    def forward(self, input: Tensor) -> Tensor:
        """[…, I] → […, O]; the backward pass dequantises the weight again instead of keeping it."""
        output: Tensor = _Product.apply(input, lambda: self.weight.to(input.dtype))  # type: ignore[no-untyped-call]
        return output if self.bias is None else output + self.bias.to(output.dtype)


class NF4Linear(QuantizedLinear):
    """A weight in NormalFloat: 4 bits and a scale for each block of 64."""

    quantized = staticmethod(nf4.quantize)
    dequantized = staticmethod(nf4.dequantize)


class Int8Linear(QuantizedLinear):
    """A weight in 8-bit integers and a scale for each row."""

    quantized = staticmethod(int8.quantize)
    dequantized = staticmethod(int8.dequantize)


FORMATS: dict[str, type[QuantizedLinear]] = {"nf4": NF4Linear, "int8": Int8Linear}


def quantize_layer(model: nn.Module, name: str, kind: str) -> None:
    """Replace a linear layer or Conv1D of a model by a quantised one, in place."""
    layer = model.get_submodule(name)
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    assert bias is None or isinstance(bias, nn.Parameter)
    if isinstance(layer, Conv1D):
        weight = weight.T  # a Conv1D holds [I, O]
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, FORMATS[kind](weight, bias))


class _Product(torch.autograd.Function):
    """input @ weightᵀ with a weight that is dequantised when it is needed and has no gradient."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, input: Tensor, make: Callable[[], Tensor]) -> Tensor:
        ctx.make = make  # type: ignore[attr-defined]
        return input @ make().T

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] @ ctx.make(), None  # type: ignore[attr-defined]
