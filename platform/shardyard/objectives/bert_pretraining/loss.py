"""BERT's pretraining: hidden tokens and next-sentence prediction together (Devlin et al. 2018, section 3.1)."""

from __future__ import annotations

from torch import nn

from shardyard.objectives import losses
from shardyard.objectives.base import Z_LOSS, Measured, Objective, Tensors, Totals, count_targets, is_training
from shardyard.objectives.chunked import output_with_logits
from shardyard.objectives.inputs import ObjectiveInputs
from shardyard.objectives.masked_lm.loss import chosen, num_correct
from shardyard.objectives.z_loss import token_losses, z_metrics


class BertPretraining(Objective):
    """Rows of sentence pairs (`data/formats/sentence_pairs.py`).

    As in the paper, the loss is the sum of the mean over hidden tokens (`mlm`) and the mean over rows (`nsp`).
    """

    def __init__(self, logits_chunk: int = 0, z_loss: float = 0.0) -> None:
        """`logits_chunk`: most tokens whose logits exist at the same time; 0 for all. `z_loss`: its weight, for the
        hidden tokens."""
        self._logits_chunk, self._z_loss = logits_chunk, z_loss
        self.weights = {"mlm": 1.0, "nsp": 1.0, **({Z_LOSS: z_loss} if z_loss else {})}

    def counts(self, batch: Tensors) -> dict[str, float]:
        """One target per hidden token (`mlm`), and one per row (`nsp`)."""
        hidden = count_targets(batch["labels"])
        squares = {Z_LOSS: hidden} if self._z_loss else {}
        return {"mlm": hidden, "nsp": count_targets(batch["next_sentence_label"]), **squares}

    def measure(self, model: nn.Module, batch: Tensors) -> Measured:
        """`labels` [B, T], `next_sentence_label` [B]; everything else in the batch is passed to the model."""
        labels = ("labels", "next_sentence_label")
        inputs = {name: tensor for name, tensor in batch.items() if name not in labels}
        output = output_with_logits(model, inputs, self._logits_chunk, "prediction_logits")
        tokens = chosen(output.prediction_logits, batch["labels"])
        pairs = output.seq_relationship_logits, batch["next_sentence_label"]
        found = token_losses(losses.cross_entropy, *tokens, z_loss=self._z_loss, training=is_training(model))
        return Measured(
            {"mlm": found.pop("loss"), "nsp": losses.cross_entropy(*pairs), **found},
            {"correct_mlm": num_correct(*tokens), "correct_nsp": num_correct(*pairs)},
        )

    def train_metrics(self, totals: Totals) -> dict[str, float]:
        """All terms."""
        return super().train_metrics(totals) | z_metrics(totals)

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Both losses, and the shares of tokens and pairs that are predicted correctly."""
        return {
            "loss_mlm": totals.mean("mlm"),
            "loss_nsp": totals.mean("nsp"),
            "mlm_accuracy": totals.share("correct_mlm", "mlm"),
            "nsp_accuracy": totals.share("correct_nsp", "nsp"),
        }


def make(inputs: ObjectiveInputs) -> BertPretraining:
    """Create the objective from its recipe sections."""
    return BertPretraining(inputs.logits_chunk, inputs.loss.z_loss)
