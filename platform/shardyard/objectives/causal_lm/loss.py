"""Causal language modelling: each token is predicted from those before it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from shardyard.errors import ModelError
from shardyard.models.isolation import document_inputs
from shardyard.objectives.base import Z_LOSS, Measured, Objective, Tensors, Totals, count_targets, is_training
from shardyard.objectives.chunked import ChunkedLogits, output_with_logits
from shardyard.objectives.inputs import ObjectiveInputs
from shardyard.objectives.losses import cross_entropy
from shardyard.objectives.routing import (
    balance_loss,
    expert_metrics,
    expert_table,
    num_experts,
    observe,
    watching,
    z_loss,
)
from shardyard.objectives.scores import perplexity
from shardyard.objectives.z_loss import token_losses, z_metrics
from shardyard.recipe import schema
from shardyard.recipe.isolation import Isolation


def causal_lm_loss(
    model: nn.Module,
    input_ids: Tensor,
    labels: Tensor,
    position_ids: Tensor,
    *,
    label_smoothing: float = 0.0,
    isolation: Isolation = "positions",
    logits_chunk: int = 0,
) -> Tensor:
    """Sum of the cross-entropies of all targets, in nats.

    B: rows, T: tokens in a row, V: vocabulary.

    Args:
        model: maps tokens to an output with `logits` [B, T, V].
        input_ids: [B, T].
        labels: [B, T], already shifted: `labels[:, t]` is the token after `input_ids[:, t]`; -100 is not a target.
        position_ids: [B, T]; attention does not look back beyond a position where they restart.
        label_smoothing: probability that a target spreads evenly over all tokens.
        isolation: how the documents of a row are kept apart.
        logits_chunk: most tokens whose logits exist at the same time; 0 for all.

    Returns:
        A scalar in fp32. It is a sum, not a mean, so that all targets of a global batch have the same weight, however
        it is split into micro-batches and ranks.
    """
    logits = causal_lm_logits(model, input_ids, position_ids, isolation=isolation, logits_chunk=logits_chunk)
    return cross_entropy(logits, labels, label_smoothing=label_smoothing)


def causal_lm_logits(
    model: nn.Module, input_ids: Tensor, position_ids: Tensor, *, isolation: Isolation, logits_chunk: int
) -> Tensor | ChunkedLogits:
    """The logits [B, T, V] of rows whose documents are kept apart; arguments as for `causal_lm_loss`."""
    apart = document_inputs(model, position_ids, isolation)
    logits: Tensor | ChunkedLogits = output_with_logits(
        model, {"input_ids": input_ids, "use_cache": False, **apart}, logits_chunk
    ).logits
    return logits


class CausalLM(Objective):
    """Rows of packed documents (`data/formats/packed.py`); with experts, also their losses and metrics.

    Args:
        label_smoothing: probability that a target spreads evenly over all tokens.
        z_loss: weight of the z-loss of the output.
        experts: weights of the losses of a mixture of experts.
        has_experts: whether the model is a mixture of experts.
        isolation: how the documents of a row are kept apart.
        logits_chunk: most tokens whose logits exist at the same time; 0 for all.
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        experts: schema.Experts | None = None,
        *,
        has_experts: bool = False,
        isolation: Isolation = "positions",
        logits_chunk: int = 0,
        z_loss: float = 0.0,
    ) -> None:
        self._has_experts, self._z_loss = has_experts, z_loss
        self._logits = partial(causal_lm_logits, isolation=isolation, logits_chunk=logits_chunk)
        self._own_loss: Callable[..., Tensor] = partial(cross_entropy, label_smoothing=label_smoothing)
        terms = {"balance": experts.balance, "z": experts.z_loss} if experts is not None else {}
        self._terms = {name: weight for name, weight in terms.items() if weight > 0}
        self.weights = {"loss": 1.0, **self._terms, **({Z_LOSS: z_loss} if z_loss else {})}

    def counts(self, batch: Tensors) -> dict[str, float]:
        """One target per token; router losses are means over all tokens, targets or not."""
        targets, labels = count_targets(batch["labels"]), batch["labels"]
        squares = {Z_LOSS: targets} if self._z_loss else {}
        return {"loss": targets, **squares, **dict.fromkeys(self._terms, labels.numel())}

    def measure(self, model: nn.Module, batch: Tensors) -> Measured:
        """`input_ids`, `labels`, `position_ids` [B, T]."""
        if not self._has_experts:
            return Measured(self._losses(model, batch))
        with watching(model) as routes:
            losses = self._losses(model, batch)
        if not routes:
            self._refuse_unseen()
            return Measured(losses)
        if "balance" in self._terms:
            losses["balance"] = balance_loss(routes) * batch["labels"].numel()
        if "z" in self._terms:
            losses["z"] = z_loss(routes)
        return Measured(losses, observe(routes))

    def _losses(self, model: nn.Module, batch: Tensors) -> dict[str, Tensor]:
        logits = self._logits(model, batch["input_ids"], batch["position_ids"])
        training = is_training(model)
        return token_losses(self._own_loss, logits, batch["labels"], z_loss=self._z_loss, training=training)

    def _refuse_unseen(self) -> None:
        if self._terms:
            raise ModelError(
                "the routers of this model cannot be watched, so model.experts.balance and z_loss have nothing to act "
                "on; set them to 0, or use a family whose routers transformers records, such as mixtral or qwen3_moe."
            )

    def train_metrics(self, totals: Totals) -> dict[str, float]:
        """Usage of experts; with further losses, also the cross-entropy without them, and both z-losses."""
        alone = {"train/cross_entropy": totals.mean("loss")} if len(self.weights) > 1 else {}
        routers = {"moe/z_loss": totals.mean("z")} if "z" in self._terms else {}
        return alone | z_metrics(totals) | routers | expert_metrics(totals.observed)

    def metrics(self, totals: Totals) -> dict[str, float]:
        """The cross-entropy alone, so that models with and without experts compare; perplexity; usage of experts."""
        mean = totals.mean("loss")
        experts = expert_metrics(totals.observed) | expert_table(totals.observed)
        return {"loss": mean, "perplexity": perplexity(mean), **experts}


def make(inputs: ObjectiveInputs) -> CausalLM:
    """Create the objective from its recipe sections."""
    has_experts = inputs.model is not None and num_experts(inputs.model) > 0
    return CausalLM(
        inputs.loss.label_smoothing,
        inputs.experts,
        has_experts=has_experts,
        isolation=inputs.isolation,
        logits_chunk=inputs.logits_chunk,
        z_loss=inputs.loss.z_loss,
    )
