"""BERT's pretraining: hidden tokens and next-sentence prediction together (Devlin et al. 2018, section 3.1)."""

from __future__ import annotations

from torch import nn

from shardyard.objectives import losses
from shardyard.objectives.base import Measured, Objective, Tensors, Totals, count_targets
from shardyard.objectives.chunked import output_with_logits
from shardyard.objectives.inputs import ObjectiveInputs
from shardyard.objectives.masked_lm.loss import chosen, num_correct


class BertPretraining(Objective):
    """Rows of sentence pairs (`data/formats/sentence_pairs.py`).

    As in the paper, the loss is the sum of the mean over hidden tokens (`mlm`) and the mean over rows (`nsp`).
    """

    def __init__(self, logits_chunk: int = 0) -> None:
        """`logits_chunk`: most tokens whose logits exist at the same time; 0 for all."""
        self._logits_chunk = logits_chunk
        self.weights = {"mlm": 1.0, "nsp": 1.0}

    def counts(self, batch: Tensors) -> dict[str, float]:
        """One target per hidden token (`mlm`), and one per row (`nsp`)."""
        return {"mlm": count_targets(batch["labels"]), "nsp": count_targets(batch["next_sentence_label"])}

    def measure(self, model: nn.Module, batch: Tensors) -> Measured:
        """`labels` [B, T], `next_sentence_label` [B]; everything else in the batch is passed to the model."""
        labels = ("labels", "next_sentence_label")
        inputs = {name: tensor for name, tensor in batch.items() if name not in labels}
        output = output_with_logits(model, inputs, self._logits_chunk, "prediction_logits")
        tokens = chosen(output.prediction_logits, batch["labels"])
        pairs = output.seq_relationship_logits, batch["next_sentence_label"]
        return Measured(
            {"mlm": losses.cross_entropy(*tokens), "nsp": losses.cross_entropy(*pairs)},
            {"correct_mlm": num_correct(*tokens), "correct_nsp": num_correct(*pairs)},
        )

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
    return BertPretraining(inputs.logits_chunk)
