"""Causal language modelling: each token is predicted from those before it."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional

from shardyard.objectives.base import IGNORED, Measured, Objective, Tensors, Totals, count_targets
from shardyard.objectives.parts import Parts


def causal_lm_loss(
    model: nn.Module, input_ids: Tensor, labels: Tensor, position_ids: Tensor, *, label_smoothing: float = 0.0
) -> Tensor:
    """Sum of the cross-entropies of all targets, in nats.

    B: rows, T: tokens in a row, V: vocabulary.

    Args:
        model: maps tokens to an output with `logits` [B, T, V].
        input_ids: [B, T].
        labels: [B, T], already shifted: `labels[:, t]` is the token after `input_ids[:, t]`; -100 is not a target.
        position_ids: [B, T]; where they start again, attention does not look back.
        label_smoothing: probability that a target gives to all tokens alike.

    Returns:
        A scalar in fp32. It is a sum, not a mean, so that a global batch weighs each of its targets alike however it is
        cut into micro-batches and ranks.
    """
    logits = model(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits  # [B, T, V]
    return functional.cross_entropy(
        logits.float().view(-1, logits.size(-1)),
        labels.reshape(-1),
        ignore_index=IGNORED,
        reduction="sum",
        label_smoothing=label_smoothing,
    )


class CausalLM(Objective):
    """Rows of packed documents (`data/formats/packed.py`)."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self._label_smoothing = label_smoothing

    def counts(self, batch: Tensors) -> dict[str, float]:
        """One target a token."""
        return {"loss": count_targets(batch["labels"])}

    def measure(self, model: nn.Module, batch: Tensors) -> Measured:
        """`input_ids`, `labels`, `position_ids` [B, T]."""
        return Measured({"loss": causal_lm_loss(model, **batch, label_smoothing=self._label_smoothing)})

    def metrics(self, totals: Totals) -> dict[str, float]:
        """e to the mean loss."""
        return {"perplexity": perplexity(totals.mean("loss"))}


def perplexity(mean: float) -> float:
    """e to a mean loss in nats; infinite where that overflows."""
    return math.exp(mean) if mean < 700 else math.inf


def make(parts: Parts) -> CausalLM:
    """From its sections of a recipe."""
    return CausalLM(parts.loss.label_smoothing)
