"""The z-loss of target tokens (`loss.z_loss`), beside another loss of the same logits, which are computed once.

Chowdhery et al. 2022 (PaLM), section 5: (log Z)², where Z = Σ_c e^logit_c is the denominator of the softmax. With a
small weight it keeps log Z near 0, and so logits from growing, which 16-bit precision rounds the more.

    C: classes, N: targets, V: vocabulary, …: any number of axes
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from shardyard.objectives.base import IGNORED, Z_LOSS, Totals
from shardyard.objectives.chunked import ChunkedLogits, Part, over_tokens


def each_z_loss(logits: Tensor, labels: Tensor, *, weights: Tensor | None = None, wide: Tensor | None = None) -> Tensor:
    """The z-loss of each label in fp32 at least: [N], 0 where there is no target.

    Args:
        logits: […, C].
        labels: […], of which only -100 matters: not a target.
        weights: […], factors of the targets; None means 1 for all.
        wide: the logits in fp32 at least, if they exist already; gradients reach them alone.
    """
    assert labels.shape == logits.shape[:-1], (labels.shape, logits.shape)
    wide = (_wide(logits) if wide is None else wide).reshape(-1, logits.shape[-1])
    kept = logits.detach().reshape(wide.shape)
    squares: Tensor = _SquaredLogPartition.apply(wide, kept)  # type: ignore[no-untyped-call]
    squares = torch.where(labels.reshape(-1) != IGNORED, squares, 0)
    return squares if weights is None else squares * weights.reshape(-1).to(squares.dtype)


class _SquaredLogPartition(torch.autograd.Function):
    """(log Σ_c e^logit_c)² of each row of logits [N, C]: [N].

    Kept for the backward pass are the logits of the model, which exist anyway, and not their copy in fp32; the gradient
    is computed in one buffer. So the peak of a step does not grow beside a cross-entropy that is computed afterwards,
    and goes backward before.
    """

    @staticmethod
    def forward(ctx: Any, wide: Tensor, logits: Tensor) -> Tensor:
        logarithm = wide.logsumexp(-1)  # [N]
        ctx.save_for_backward(logits, logarithm)
        return logarithm.square()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        logits, logarithm = ctx.saved_tensors
        softmax = (logits.to(logarithm.dtype) - logarithm[:, None]).exp_()
        return softmax.mul_((2 * logarithm * gradient)[:, None]), None


def with_z_loss(
    loss: Part,
    logits: Tensor | ChunkedLogits,
    labels: Tensor,
    *others: Tensor | ChunkedLogits | None,
    weights: Tensor | None = None,
) -> Tensor:
    """Losses of tokens with their z-losses, from one computation of the logits, flat.

    Args:
        loss: gets the logits [n, V] of some tokens in fp32 at least, and their part of `labels` and of `others`.
            Returns L sums over them, [L] or a scalar, or L losses for each of them, [n, L].
        logits: […, V].
        labels: […]; -100 is not a target.
        others: further values of the tokens, as for `ChunkedLogits.map`.
        weights: […], factors of the z-losses; None means 1 for all.

    Returns:
        Flat: L losses of each part of the tokens (or of each token), and its z-loss after them.
    """

    def both(part: Tensor, own: Tensor, weighed: Tensor | None, *values: Tensor | None) -> Tensor:
        wide = _wide(part)
        squares = each_z_loss(part, own, weights=weighed, wide=wide)
        found = loss(wide, own, *values)
        if found.dim() == 2:
            return torch.cat([found, squares[:, None]], dim=1)
        return torch.cat([found.reshape(-1), squares.sum()[None]])

    return over_tokens(both, logits, labels, weights, *others)


def token_losses(
    loss: Callable[..., Tensor],
    logits: Tensor | ChunkedLogits,
    labels: Tensor,
    weights: Tensor | None = None,
    *,
    z_loss: float,
    training: bool,
) -> dict[str, Tensor]:
    """The loss terms of an objective with one loss of tokens: `loss`, and `z_loss` if it has a weight.

    Args:
        loss: of the logits and labels of some tokens, or of all, and if there are weights also of `weights`; returns
            the sum over them.
        logits: […, V].
        labels: […]; -100 is not a target.
        weights: […], factors of the targets; None means 1 for all.
        z_loss: the weight of the z-loss.
        training: the z-loss is 0 otherwise: evaluations compare models by the loss alone.
    """
    others = () if weights is None else (weights,)

    def summed(some: Tensor | ChunkedLogits, own: Tensor, *weighed: Tensor) -> Tensor:
        return loss(some, own, weights=weighed[0]) if weighed else loss(some, own)

    if z_loss and training:
        found, squares = with_z_loss(summed, logits, labels, *others, weights=weights).view(-1, 2).sum(0)
        return {"loss": found, Z_LOSS: squares}
    found = summed(logits, labels, *others)
    return {"loss": found, Z_LOSS: found.new_zeros(())} if z_loss else {"loss": found}


def z_metrics(totals: Totals, alone: str | None = None) -> dict[str, float]:
    """`train/z_loss`, the mean of (log Z)² over targets, without its weight; nothing if the recipe has no z-loss.

    `alone`: a metric for the loss term `loss`, which training minimises beside it.
    """
    if Z_LOSS not in totals.losses:
        return {}
    return {"train/z_loss": totals.mean(Z_LOSS), **({} if alone is None else {f"train/{alone}": totals.mean("loss")})}


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
