"""Sequence to sequence: a decoder predicts each token of a text from the tokens before it and the encoder's input.

Sutskever et al. 2014; the Transformer of Vaswani et al. 2017. In training the decoder reads the reference text, not its
own predictions (teacher forcing).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from shardyard.objectives import losses, scores
from shardyard.objectives.base import Z_LOSS, Measured, Objective, Tensors, Totals, count_targets, is_training
from shardyard.objectives.chunked import ChunkedLogits, output_with_logits
from shardyard.objectives.decoding import decode, kept_texts
from shardyard.objectives.inputs import ObjectiveInputs
from shardyard.objectives.rouge import first_words, rouge
from shardyard.objectives.z_loss import token_losses, z_metrics


class EncoderDecoder(Objective):
    """Base of the objectives whose decoder writes a text.

    B: rows, T: tokens of the longest text. A batch has `decoder_input_ids`, `labels` [B, T], and the encoder's inputs.
    """

    def __init__(self, given: ObjectiveInputs) -> None:
        assert given.sequence_length is not None, "checked with the recipe"
        self._loss, self._evaluate, self._tokenizer = given.loss, given.evaluate, given.tokenizer
        self._logits_chunk = given.logits_chunk
        self._max_tokens, self._prompt = given.sequence_length, given.decoder_prompt
        self.weights = {"loss": 1.0, **({Z_LOSS: given.loss.z_loss} if given.loss.z_loss else {})}

    def inputs(self, model: nn.Module, batch: Tensors) -> Tensors:
        """The encoder's inputs, by the names of the model's arguments."""
        raise NotImplementedError

    def counts(self, batch: Tensors) -> dict[str, float]:
        """One target per token of the decoder's text, including the end token."""
        return dict.fromkeys(self.weights, float(count_targets(batch["labels"])))

    def measure(self, model: nn.Module, batch: Tensors) -> Measured:
        """The recipe's loss in training; cross-entropy in evaluation, so that perplexity is correct."""
        logits = self._output(model, batch).logits  # [B, T, V]
        return Measured(self._losses(logits, batch["labels"], training=is_training(model)))

    def train_metrics(self, totals: Totals) -> dict[str, float]:
        """With a z-loss, both terms."""
        return z_metrics(totals, self._loss.name)

    def _output(self, model: nn.Module, batch: Tensors) -> Any:
        inputs = {**self.inputs(model, batch), "decoder_input_ids": batch["decoder_input_ids"], "use_cache": False}
        return output_with_logits(model, inputs, self._logits_chunk)

    def _losses(self, logits: Tensor | ChunkedLogits, labels: Tensor, *, training: bool) -> dict[str, Tensor]:
        loss = self._training_loss if training else losses.cross_entropy
        return token_losses(loss, logits, labels, z_loss=self._loss.z_loss, training=training)

    def _training_loss(self, logits: Tensor | ChunkedLogits, labels: Tensor) -> Tensor:
        if self._loss.name == "focal":
            return losses.focal(logits, labels, gamma=self._loss.focal_gamma)
        return losses.cross_entropy(logits, labels, label_smoothing=self._loss.label_smoothing)

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Perplexity."""
        return {"perplexity": scores.perplexity(totals.mean("loss"))}

    def rows_to_collect(self, rows: int) -> int:
        """The number of rows that the recipe wants decoded."""
        return min(rows, self._evaluate.generate_rows)

    def collect(self, model: Any, batch: Tensors, *, synchronised: bool) -> list[Any]:
        """One tuple per row: the decoded text and the texts that the row holds."""
        decoded = decode(
            model,
            self._tokenizer,
            self.inputs(model, batch),
            max_tokens=self._max_tokens,
            prompt=self._prompt,
            beams=self._evaluate.beams,
            synchronised=synchronised,
        )
        kept = [kept_texts(batch, name) for name in ("reference", "source_text") if name in batch]
        return list(zip(decoded, *kept, strict=True))


class Seq2Seq(EncoderDecoder):
    """Text to text (`data/formats/translation.py`)."""

    def inputs(self, model: nn.Module, batch: Tensors) -> Tensors:
        """Tokens and attention mask of the source, [B, S] each."""
        return {name: batch[name] for name in ("input_ids", "attention_mask")}

    def score(self, collected: list[Any]) -> dict[str, float]:
        """BLEU and chrF of the decoded texts, and chrF of the sources, which a translation must exceed.

        With `evaluate.rouge` also ROUGE, and ROUGE-L of the sources' first words, as many as the references have, which
        a summary must exceed.
        """
        decoded, references, sources = ([row[index] for row in collected] for index in range(3))
        found = {
            "bleu": scores.bleu(decoded, references),
            "chrf": scores.chrf(decoded, references),
            "chrf_of_source": scores.chrf(sources, references),
        }
        if self._evaluate.rouge == "off":
            return found
        stemmed = self._evaluate.rouge == "stemmed"
        firsts = [first_words(source, like=reference) for source, reference in zip(sources, references, strict=True)]
        lead = rouge(firsts, references, stemmed=stemmed)["rouge_l"]
        return {**found, **rouge(decoded, references, stemmed=stemmed), "rouge_l_of_first_words": lead}


def make(given: ObjectiveInputs) -> Seq2Seq:
    """Create the objective from its recipe sections."""
    return Seq2Seq(given)
