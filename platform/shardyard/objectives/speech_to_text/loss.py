"""Speech to text: a decoder writes what an encoder hears (Whisper, Radford et al. 2022, and others)."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.models.whisper.english_normalizer import BasicTextNormalizer

from shardyard.objectives import losses, scores
from shardyard.objectives.base import Measured, Tensors, Totals, as_model
from shardyard.objectives.inputs import ObjectiveInputs
from shardyard.objectives.seq2seq.loss import EncoderDecoder
from shardyard.objectives.z_loss import z_metrics

# Lower case, no punctuation, no remarks in brackets: how Whisper's error rates are computed for any language.
_normalise = BasicTextNormalizer()

_WRITTEN = frozenset({"decoder_input_ids", "labels", "reference"})


class SpeechToText(EncoderDecoder):
    """Recordings to texts (`data/formats/speech.py`).

    With `audio.ctc` (Whisper), the encoder's outputs [B, S, D] are also multiplied by the decoder's output matrix, and
    the end-of-text token serves as the blank, so the model needs no weights beyond those of transformers.
    """

    def __init__(self, given: ObjectiveInputs) -> None:
        super().__init__(given)
        # Labels that are given, such as the language, are not heard.
        self._given_labels = max(0, len(given.decoder_prompt) - 1)
        self._ctc, self._blank = given.audio.ctc, given.tokenizer.eos_token_id if given.audio.ctc else 0

    def inputs(self, model: nn.Module, batch: Tensors) -> Tensors:
        """What the encoder hears, by the names of its arguments: `input_features` or `input_values`, and perhaps
        `attention_mask`."""
        heard = {name: value for name, value in batch.items() if name not in _WRITTEN}
        return {name: as_model(model, one) if one.is_floating_point() else one for name, one in heard.items()}

    def measure(self, model: nn.Module, batch: Tensors) -> Measured:
        """In training, adds the CTC loss if the recipe enables it."""
        bare: Any = getattr(model, "module", model)
        if not (self._ctc and bare.training):
            return super().measure(model, batch)
        out = self._output(model, batch)
        heard = bare.get_output_embeddings()(out.encoder_last_hidden_state)
        ctc = losses.ctc(heard, batch["labels"][:, self._given_labels :], blank=self._blank)
        written = self._losses(out.logits, batch["labels"], training=True)
        return Measured({**written, "loss": written["loss"] + self._ctc * ctc}, {"ctc": ctc.detach().double()})

    def train_metrics(self, totals: Totals) -> dict[str, float]:
        """The CTC loss in nats per token of the texts; with a z-loss, all terms."""
        if "ctc" not in totals.observed:
            return super().train_metrics(totals)
        ctc = totals.share("ctc", "loss")
        alone = totals.mean("loss") - self._ctc * ctc
        z = z_metrics(totals)
        return {"train/ctc_loss": ctc, **({**z, f"train/{self._loss.name}": alone} if z else {})}

    def score(self, collected: list[Any]) -> dict[str, float]:
        """Error rates of the decoded texts, after normalising both sides."""
        decoded, references = ([_normalise(row[index]).strip() for row in collected] for index in range(2))
        return {
            "word_error_rate": scores.word_error_rate(decoded, references),
            "character_error_rate": scores.character_error_rate(decoded, references),
        }


def make(given: ObjectiveInputs) -> SpeechToText:
    """Create the objective from its recipe sections."""
    return SpeechToText(given)
