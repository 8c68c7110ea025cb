"""Token classification: the class of each word, predicted at its first token (Devlin et al. 2018, section 5.3).

B: rows, T: tokens in a row, C: classes
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from shardyard.objectives.base import IGNORED, Measured, Objective, Tensors, Totals, count_targets
from shardyard.objectives.classification import class_counts, macro_f1
from shardyard.objectives.inputs import ObjectiveInputs
from shardyard.objectives.masked_lm.loss import chosen, num_correct, target_loss
from shardyard.objectives.token_classification.entities import (
    EntityCounts,
    count_entities,
    mark_entities,
    precision_recall_f1,
)
from shardyard.recipe.schema import Loss


class TokenClassification(Objective):
    """Rows of tagged words (`rows.py`); each word is one target.

    Args:
        names: of the classes, in order; entities are scored if they are tags such as `B-PER`.
    """

    def __init__(self, loss: Loss, names: list[str]) -> None:
        self._loss, self._names = loss, names
        self._entities = mark_entities(names)

    def counts(self, batch: Tensors) -> dict[str, float]:
        """One target per word."""
        return {"loss": count_targets(batch["labels"])}

    def measure(self, model: nn.Module, batch: Tensors) -> Measured:
        """`labels` [B, T], -100 where no word begins; everything else in the batch is passed to the model."""
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        logits = model(**inputs).logits  # [B, T, C]
        some, labels = chosen(logits, batch["labels"])
        observed = {"correct": num_correct(some, labels), "classes": class_counts(some, labels)}
        if self._entities and not getattr(model, "module", model).training:
            observed["entities"] = self._count(logits.argmax(-1), batch["labels"])
        return Measured({"loss": target_loss(self._loss, some, labels)}, observed)

    def _count(self, predicted: Tensor, labels: Tensor) -> Tensor:
        counts = EntityCounts(0, 0, 0)
        for found, wanted in zip(self._tags(predicted, labels), self._tags(labels, labels), strict=True):
            counts += count_entities(found, wanted)
        return torch.tensor(counts, dtype=torch.float64, device=labels.device)

    def _tags(self, classes: Tensor, labels: Tensor) -> Iterator[list[str]]:
        """The names of the words' classes, row by row."""
        for row, kept in zip(classes.cpu(), (labels != IGNORED).cpu(), strict=True):
            yield [self._names[one] for one in row[kept].tolist()]

    def train_metrics(self, totals: Totals) -> dict[str, float]:
        """Accuracy on the training rows, before the update."""
        return {"train/accuracy": totals.share("correct", "loss")}

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Share of correct tags, their macro F1, and precision, recall and F1 of whole entities."""
        found = {"accuracy": totals.share("correct", "loss"), "f1_tags": macro_f1(totals.observed["classes"])}
        if "entities" in totals.observed:
            counts = EntityCounts(*(round(number) for number in totals.observed["entities"].tolist()))
            found |= dict(zip(("precision", "recall", "f1"), precision_recall_f1(counts), strict=True))
        return found


def make(inputs: ObjectiveInputs) -> TokenClassification:
    """Create the objective from its recipe sections and the names of the model's classes."""
    names: dict[int, str] = inputs.model.id2label
    return TokenClassification(inputs.loss, [names[number] for number in range(len(names))])
