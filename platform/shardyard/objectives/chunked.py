"""Logits that never exist as a whole: the output layer and the loss are computed a few tokens at a time.

The logits of a micro-batch, [B, T, V], are often the largest tensor of a step, and exist four times: in the precision
of the model and in fp32, and the gradients of both. Here a forward pass ends with the last hidden states. A loss then
computes the logits of `size` tokens, reduces them to a number or one for each token, and forgets them; its backward
pass computes them again (one matrix product more). As in Liger (Hsu et al. 2024) and DeepSpeed's tiled loss, but for
any loss and any output layer, because both are called as they are.

    N: tokens, D: width of the hidden states, V: vocabulary
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from shardyard.errors import ModelError

Part = Callable[..., Tensor]
Change = Callable[[Tensor], Tensor]
# The values with which it is tried what a model does with its logits.
_REACH = 60.0
# What models do with the outputs of their layers: found once, because reading it makes the host wait for the device.
_CHANGES: weakref.WeakKeyDictionary[nn.Module, Change] = weakref.WeakKeyDictionary()


def output_with_logits(model: Any, inputs: Mapping[str, object], size: int, name: str = "logits") -> Any:
    """Call a model; the `logits` of its output are computed for `size` tokens at a time if `size` is not 0.

    Args:
        model: a model of transformers, also wrapped by DeepSpeed's engine.
        name: of the logits in the output.

    Returns:
        The model's output, whose `logits` are a tensor […, V] or `ChunkedLogits`.

    Raises:
        ModelError: the model changes its logits in a way that cannot be repeated for a part of them.
    """
    bare = getattr(model, "module", model)
    place = _output_layer(bare) if size else None
    if place is None:
        return model(**inputs)
    with _kept(*place) as kept:
        output = model(**inputs)
    if kept.hidden is None:  # The model multiplies by the matrix itself.
        return output
    logits = output[name]
    if isinstance(logits, Tensor):
        if kept.layer not in _CHANGES:
            _CHANGES[kept.layer] = _change(kept, logits, getattr(bare, "config", None))
        output[name] = ChunkedLogits(kept.layer, kept.hidden, _CHANGES[kept.layer], size, end=logits)
    return output


class ChunkedLogits:
    """Logits [N, V] of N tokens, computed from their hidden states where they are needed.

    Args:
        layer: the output layer, which maps […, D] to […, V].
        hidden: the hidden states […, D].
        change: what the model does with the output of its layer, such as a scale.
        size: most tokens whose logits exist at the same time.
        end: what the model returned in their place; a loss gives it a gradient of zero. Only then does ZeRO-3 know of
            every module around the layer that its backward pass has begun.
    """

    def __init__(self, layer: nn.Module, hidden: Tensor, change: Change, size: int, end: Tensor | None = None) -> None:
        self._layer, self._change, self._size, self._end = layer, change, size, end
        self.shape = torch.Size((*hidden.shape[:-1], _width(layer)))
        self._hidden = hidden.flatten(0, -2)  # [N, D]
        self._likeliest: Tensor | None = None

    def map(self, part: Part, *tokens: Tensor | ChunkedLogits | None) -> Tensor:
        """The results of `part` for all chunks, one after the other.

        Args:
            part: gets the logits [n, V] of a chunk and its part of each of `tokens`; returns a scalar or [n].
            tokens: values of the tokens, of the shape of the logits without V, or other logits of the same tokens; None
                is passed on.
        """
        others = [_by_range(one, len(self.shape) - 1) for one in tokens]
        likeliest = torch.zeros(len(self._hidden), dtype=torch.int64, device=self._hidden.device)
        plain = self._layer.forward

        def one_chunk(hidden: Tensor, begin: int) -> Tensor:
            end = begin + len(hidden)
            logits = self._change(plain(hidden))
            if not torch.is_grad_enabled():  # The first time; with gradients, it is computed again.
                likeliest[begin:end] = logits.argmax(-1)
            return part(logits, *(one(begin, end) for one in others)).reshape(-1)

        def all_chunks(hidden: Tensor) -> Tensor:
            weights = [weight for weight in self._layer.parameters() if weight.requires_grad]
            result: Tensor = _InChunks.apply(  # type: ignore[no-untyped-call]
                one_chunk, self._size, hidden, *weights
            )
            return result

        # By a call of the layer, so that ZeRO-3 gathers its weights before, and again for the backward pass.
        with _forward_replaced(self._layer, all_chunks):
            result: Tensor = self._layer(self._hidden)
        self._likeliest = likeliest
        return result if self._end is None else result + _nothing_of(self._end)

    def values(self, begin: int, end: int) -> Tensor:
        """The logits [end - begin, V] of some tokens, without gradient."""
        with torch.no_grad():
            return self._change(self._layer(self._hidden[begin:end]))

    def argmax(self, dim: int = -1) -> Tensor:
        """The likeliest token of each, […]; found beside a loss where one was computed."""
        assert dim == -1, dim
        if self._likeliest is None:
            with torch.no_grad():
                self.map(lambda logits: logits.new_zeros(()))
        assert self._likeliest is not None
        return self._likeliest.view(self.shape[:-1])

    def __getitem__(self, kept: Tensor) -> ChunkedLogits:
        """The logits of some tokens alone: `kept` is a bool for each, […]."""
        return ChunkedLogits(self._layer, self._hidden[kept.flatten()], self._change, self._size, self._end)

    def detach(self) -> ChunkedLogits:
        """Itself: `argmax` has no gradient."""
        return self


def over_tokens(part: Part, logits: Tensor | ChunkedLogits, *tokens: Tensor | ChunkedLogits | None) -> Tensor:
    """As `ChunkedLogits.map`; for logits […, V] that exist, the result of `part` for all tokens."""
    if isinstance(logits, ChunkedLogits):
        return logits.map(part, *tokens)
    flat = logits.flatten(0, -2)
    return part(flat, *(_by_range(one, logits.dim() - 1)(0, len(flat)) for one in tokens)).reshape(-1)


def _by_range(values: Tensor | ChunkedLogits | None, axes: int) -> Callable[[int, int], Tensor | None]:
    """A function of a range of tokens that returns their values; `axes` are those of the tokens."""
    if values is None:
        return lambda _begin, _end: None
    if isinstance(values, ChunkedLogits):
        return values.values
    flat = values.flatten(0, axes - 1)
    return lambda begin, end: flat[begin:end]


@contextmanager
def _forward_replaced(layer: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    before = vars(layer).get("forward")
    layer.forward = forward
    try:
        yield
    finally:
        if before is None:
            del layer.forward
        else:
            layer.forward = before


class _InChunks(torch.autograd.Function):
    """A function of hidden states by chunks, each computed again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, run: Callable[[Tensor, int], Tensor], size: int, hidden: Tensor, *weights: Tensor) -> Tensor:
        results = [run(part, begin) for begin, part in _chunks(hidden, size)]
        ctx.run, ctx.size, ctx.weights = run, size, weights
        ctx.lengths = [len(result) for result in results]
        ctx.save_for_backward(hidden)
        return torch.cat(results)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        (hidden,), (gradient,) = ctx.saved_tensors, gradients
        # Sums over chunks in fp32: in 16 bits, each of them would be rounded.
        sums: list[Tensor | None] = [None] * len(ctx.weights)
        found, trained = [], ctx.needs_input_grad[2]
        for (begin, part), own in zip(_chunks(hidden, ctx.size), gradient.split(ctx.lengths), strict=True):
            leaf = part.detach().requires_grad_(trained)
            with torch.enable_grad():
                result = ctx.run(leaf, begin)
                wanted = [*([leaf] if trained else []), *ctx.weights]
                parts = list(torch.autograd.grad(result, wanted, own, allow_unused=True))
            if trained:
                found.append(parts.pop(0))
            for index, weight_gradient in enumerate(parts):
                if weight_gradient is not None:
                    before = sums[index]
                    sums[index] = _at_least_fp32(weight_gradient) if before is None else before.add_(weight_gradient)
        own_weights = [None if total is None else total.to(weight.dtype)
                       for total, weight in zip(sums, ctx.weights, strict=True)]  # fmt: skip
        return None, None, torch.cat(found) if trained else None, *own_weights


def _nothing_of(tensor: Tensor) -> Tensor:
    """Zero, with a gradient of zero for `tensor`, also where this is not finite."""
    return tensor.flatten()[:0].sum().float()


def _at_least_fp32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _chunks(hidden: Tensor, size: int) -> list[tuple[int, Tensor]]:
    return [(begin, hidden[begin : begin + size]) for begin in range(0, max(1, len(hidden)), size)]


class _Keep(nn.Module):
    """Stands for an output layer during a forward pass: keeps what it gets, and returns a few known numbers."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        # Not a submodule: nothing may count or move its weights twice.
        self.__dict__["layer"] = layer
        self.hidden: Tensor | None = None
        self.known: Tensor | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        if self.hidden is not None:
            raise ModelError("the model calls its output layer more than once; set model.logits_chunk to 0.")
        self.hidden = hidden
        self.known = torch.linspace(-_REACH, _REACH, _width(self.layer), device=hidden.device)
        # Of the graph of the hidden states, as logits are.
        return self.known.view(*[1] * (hidden.dim() - 1), -1) + _nothing_of(hidden)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["layer"], name)  # such as the type of `weight`


@contextmanager
def _kept(parent: nn.Module, name: str, layer: nn.Module) -> Iterator[_Keep]:
    kept = _Keep(layer)
    parent._modules[name] = kept
    try:
        yield kept
    finally:
        parent._modules[name] = layer


def _output_layer(model: Any) -> tuple[nn.Module, str, nn.Module] | None:
    """The module that has a model's output layer, its name there, and the layer; None if there is none."""
    find = getattr(model, "get_output_embeddings", None)
    layer = None if find is None else find()
    if layer is None:
        return None
    for parent in model.modules():
        for name, child in parent.named_children():
            if child is layer:
                return parent, name, layer
    return None


def _width(layer: nn.Module) -> int:
    """Number of logits of an output layer; its weight has no shape while ZeRO-3 keeps it elsewhere."""
    weight: Any = layer.weight
    shape = getattr(weight, "ds_shape", weight.shape)
    return int(getattr(layer, "out_features", shape[0]))


def _change(kept: _Keep, logits: Tensor, config: Any) -> Change:
    """What the model did with the known numbers that it got for logits: nothing, a scale, or a soft cap.

    Their size is that of a number in the configuration, where one is as large, so that no digit is lost.
    """
    assert kept.known is not None
    before, after = kept.known.double(), logits.detach().double().flatten()
    if after.shape == before.shape:
        if torch.allclose(after, before, rtol=1e-3):
            return lambda part: part
        last, changed = float(before[-1]), float(after[-1])
        scale = changed / last
        if torch.allclose(after, scale * before, rtol=1e-3):
            if (divisor := _stated(1 / scale, config)) is not None:
                return lambda part: part / divisor
            factor = _stated(scale, config) or scale
            return lambda part: part * factor
        cap = _soft_cap(last, changed)
        if cap and torch.allclose(after, cap * torch.tanh(before / cap), rtol=1e-3, atol=1e-3 * cap):
            cap = _stated(cap, config) or cap
            return lambda part: cap * torch.tanh(part / cap)
    raise ModelError(
        "this model changes its logits in a way that cannot be done for some tokens at a time; set model.logits_chunk "
        "to 0."
    )


def _stated(value: float, config: Any) -> float | None:
    """The number of a configuration, or of its part for text, that is as large as `value`."""
    if config is None:
        return None
    numbers = [one for part in (config, config.get_text_config()) for one in vars(part).values()]
    found = [one for one in numbers if isinstance(one, int | float) and not isinstance(one, bool)]
    return next((float(one) for one in found if one and math.isclose(one, value, rel_tol=1e-4)), None)


def _soft_cap(before: float, after: float) -> float:
    """c of c·tanh(before / c) = after, by halving; 0 if there is none."""
    low, high = after, 1e6
    if not 0 < after < before:
        return 0.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if middle * math.tanh(before / middle) < after else (low, middle)
    return (low + high) / 2
