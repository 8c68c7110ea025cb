"""Speech recognition by connectionist temporal classification: an encoder spells what it hears at each position.

Graves et al. 2006 (Connectionist Temporal Classification); Baevski et al. 2020 (wav2vec 2.0), section 3.3.

B: rows, S: positions of the encoder, V: vocabulary
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

from torch import Tensor, nn
from transformers.models.whisper.english_normalizer import BasicTextNormalizer

from shardyard.models.quirks import positions_of_sound
from shardyard.objectives import losses, scores
from shardyard.objectives.base import IGNORED, Measured, Objective, Tensors, as_model
from shardyard.objectives.decoding import kept_texts
from shardyard.objectives.inputs import ObjectiveInputs

# How error rates are computed for any language: lower case, no punctuation, no remarks in brackets.
_normalise = BasicTextNormalizer()
_TARGETS = frozenset({"labels", "reference"})


class SpeechCtc(Objective):
    """Rows of recordings and texts (`rows.py`); each token of a text is one target."""

    def __init__(self, given: ObjectiveInputs) -> None:
        self._tokenizer, self._blank = given.tokenizer, given.model.pad_token_id

    def counts(self, batch: Tensors) -> dict[str, float]:
        """One target per token of the texts, so that the loss is in nats per token."""
        return {"loss": float((batch["labels"] != IGNORED).sum())}

    def measure(self, model: nn.Module, batch: Tensors) -> Measured:
        """`labels` [B, T]; everything else but the texts is passed to the model, whose `logits` are [B, S, V]."""
        logits = self._logits(model, batch)
        positions = positions_of_sound(model, batch.get("attention_mask"), logits)
        return Measured({"loss": losses.ctc(logits, batch["labels"], blank=self._blank, positions=positions)})

    def rows_to_collect(self, rows: int) -> int:
        """All rows: decoding is one pass."""
        return rows

    def collect(self, model: Any, batch: Tensors, *, synchronised: bool) -> list[Any]:
        """(decoded text, text) of each row, by the best token of each position."""
        logits = self._logits(model, batch)
        positions = positions_of_sound(model, batch.get("attention_mask"), logits)
        decoded = [self._text(row[:size]) for row, size in zip(logits.argmax(-1), positions.tolist(), strict=True)]
        return list(zip(decoded, kept_texts(batch, "reference"), strict=True))

    def score(self, collected: list[Any]) -> dict[str, float]:
        """Error rates of the decoded texts, after normalising both sides."""
        decoded, references = ([_normalise(row[index]).strip() for row in collected] for index in range(2))
        return {
            "word_error_rate": scores.word_error_rate(decoded, references),
            "character_error_rate": scores.character_error_rate(decoded, references),
        }

    def _logits(self, model: nn.Module, batch: Tensors) -> Tensor:
        inputs = {name: tensor for name, tensor in batch.items() if name not in _TARGETS}
        logits: Tensor = model(
            **{name: as_model(model, one) if one.is_floating_point() else one for name, one in inputs.items()}
        ).logits
        return logits

    def _text(self, best: Tensor) -> str:
        merged = [token for token, _ in groupby(best.tolist()) if token != self._blank]
        text: str = self._tokenizer.decode(merged, skip_special_tokens=True)
        return text


def make(given: ObjectiveInputs) -> SpeechCtc:
    """Create the objective from the tokenizer and the model's blank."""
    return SpeechCtc(given)
