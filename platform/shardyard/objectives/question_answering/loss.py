"""Extractive question answering: the first and the last token of the answer (Devlin et al. 2018, section 4.2).

B: rows (windows of contexts), T: tokens in a row
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from shardyard.objectives import losses
from shardyard.objectives.base import Measured, Objective, Tensors, Totals
from shardyard.objectives.decoding import kept_texts
from shardyard.objectives.inputs import ObjectiveInputs
from shardyard.objectives.question_answering.squad import exact_match, f1
from shardyard.recipe.schema import Answering

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class Span(NamedTuple):
    """The best span of a window: its text, and the sums of logits of the span and of no answer."""

    question: int
    text: str
    score: float
    none: float
    references: list[str]


class QuestionAnswering(Objective):
    """Rows of questions with a window of a context each (`rows.py`); each row is one target."""

    def __init__(self, settings: Answering) -> None:
        self._settings = settings

    def counts(self, batch: Tensors) -> dict[str, float]:
        """One target per row: the mean of start and end."""
        return {"loss": len(batch["start_positions"])}

    def measure(self, model: nn.Module, batch: Tensors) -> Measured:
        """`start_positions`, `end_positions` [B]. The softmax is over the tokens of a row, without its padding."""
        start, end = _logits(model, batch)
        targets = batch["start_positions"], batch["end_positions"]
        loss = losses.cross_entropy(start, targets[0]) + losses.cross_entropy(end, targets[1])
        hits = (start.argmax(-1) == targets[0]) & (end.argmax(-1) == targets[1])
        return Measured({"loss": loss / 2}, {"correct": hits.sum(dtype=torch.float64)})

    def train_metrics(self, totals: Totals) -> dict[str, float]:
        """Share of the training rows with the exact span, before the update."""
        return {"train/accuracy": totals.share("correct", "loss")}

    def rows_to_collect(self, rows: int) -> int:
        """All rows, because the windows of a context are compared."""
        return rows

    def collect(self, model: Any, batch: Tensors, *, synchronised: bool) -> list[Any]:
        """The best span of each row."""
        start, end = _logits(model, batch)
        contexts, references = (kept_texts(batch, name) for name in ("context", "references"))
        found = []
        for row, (first, last) in enumerate(zip(start, end, strict=True)):
            offsets = batch["offsets"][row]  # [T, 2]
            at, score = best_span(first, last, offsets[:, 0] >= 0, self._settings.max_answer)
            text = contexts[row][int(offsets[at[0], 0]) : int(offsets[at[1], 1])]
            none = batch["none_positions"][row]
            found.append(
                Span(
                    int(batch["questions"][row]), text, score, float(first[none] + last[none]),
                    json.loads(references[row]),
                )
            )  # fmt: skip
        return found

    def score(self, collected: list[Any]) -> dict[str, float]:
        """Exact match and F1 of questions, from 0 to 1: each is answered by the best of its windows."""
        windows: dict[int, list[Span]] = defaultdict(list)
        for span in collected:
            windows[span.question].append(span)
        scored = [self._scored(spans) for spans in windows.values()]
        found = {name: _mean([one[at] for one in scored]) for at, name in enumerate(("exact_match", "f1"))}
        if not self._settings.unanswerable:
            return found
        answerable = [one for one, spans in zip(scored, windows.values(), strict=True) if spans[0].references]
        others = [one for one, spans in zip(scored, windows.values(), strict=True) if not spans[0].references]
        if answerable:
            found["f1_answerable"] = _mean([one[1] for one in answerable])
        if others:
            found["accuracy_unanswerable"] = _mean([one[0] for one in others])
        return found

    def _scored(self, spans: Sequence[Span]) -> tuple[float, float]:
        best = max(spans, key=lambda span: span.score)
        none = self._settings.unanswerable and min(span.none for span in spans) > best.score
        answer = "" if none else best.text
        return exact_match(answer, best.references), f1(answer, best.references)


def best_span(start: Tensor, end: Tensor, allowed: Tensor, longest: int) -> tuple[tuple[int, int], float]:
    """The first and last token of the span with the largest sum of logits, and that sum.

    Args:
        start, end: logits [T].
        allowed: bool [T], tokens of the context; if there are none, the span is the first token.
        longest: tokens of a span at most.
    """
    bad = torch.finfo(start.dtype).min / 4
    first, last = (torch.where(allowed, logits.clamp(min=bad), bad) for logits in (start, end))
    sums = first[:, None] + last[None, :]  # [T, T]
    inside = torch.ones_like(sums, dtype=torch.bool).triu().tril(longest - 1)
    sums = sums.masked_fill(~inside, torch.finfo(start.dtype).min)
    at = int(sums.argmax())
    return divmod(at, len(start)), float(sums.flatten()[at])


def _logits(model: Any, batch: Tensors) -> tuple[Tensor, Tensor]:
    """Logits of start and end [B, T] in fp32, very small at padding."""
    output = model(**{name: batch[name] for name in _INPUTS if name in batch})
    padding = batch["attention_mask"] == 0
    smallest = torch.finfo(torch.float32).min
    start, end = (logits.float().masked_fill(padding, smallest) for logits in (output.start_logits, output.end_logits))
    return start, end


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def make(inputs: ObjectiveInputs) -> QuestionAnswering:
    """Create the objective from its recipe sections."""
    return QuestionAnswering(inputs.answering)
