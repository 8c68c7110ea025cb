"""Speech to text: a decoder writes down what was said, from features of a recording (Whisper, Radford et al. 2022)."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.models.whisper.english_normalizer import BasicTextNormalizer

from shardyard.objectives import scores
from shardyard.objectives.base import Tensors, as_model
from shardyard.objectives.parts import Parts
from shardyard.objectives.seq2seq import EncoderDecoder

# Lower case, no punctuation, no remarks in brackets: how Whisper's error rates are taken for any language.
_normalise = BasicTextNormalizer()


class SpeechToText(EncoderDecoder):
    """Recordings to texts (`data/formats/speech.py`)."""

    def inputs(self, model: nn.Module, batch: Tensors) -> Tensors:
        """Log-Mel features [B, M, F] of M bins and F frames."""
        return {"input_features": as_model(model, batch["input_features"])}

    def score(self, collected: list[Any]) -> dict[str, float]:
        """Error rates of what was decoded, after normalising both sides."""
        decoded, references = ([_normalise(row[index]).strip() for row in collected] for index in range(2))
        return {
            "word_error_rate": scores.word_error_rate(decoded, references),
            "character_error_rate": scores.character_error_rate(decoded, references),
        }


def make(parts: Parts) -> SpeechToText:
    """From its sections of a recipe."""
    return SpeechToText(parts)
