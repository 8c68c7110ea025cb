"""The decoder side of an encoder–decoder: one text.

Legend: T = tokens of the text with its end token.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from shardyard.data.formats.inputs import FormatInputs
from shardyard.data.stream.rows import Row
from shardyard.data.tokenizers.tokenizer import plain_backend
from shardyard.errors import DataError

IGNORED = -100
# In evaluation, rows also contain the texts in UTF-8, padded with zero bytes.
PADDING = {"input_ids": 0, "attention_mask": 0, "decoder_input_ids": 0, "labels": IGNORED}
TEXT_PADDING = {"reference": 0, "source_text": 0}


class TextEncoder:
    """Encodes a text with its end token, truncated to a length; cut tokens are counted.

    Raises:
        DataError: the tokenizer has no token that ends a text.
    """

    def __init__(self, inputs: FormatInputs) -> None:
        tokenizer = inputs.text_tokenizer
        if tokenizer.eos_token_id is None:
            raise DataError("the tokenizer has no eos token, so a decoder could not end a text; choose another.")
        self._eos: int = tokenizer.eos_token_id
        self._backend = plain_backend(tokenizer)

    def encode(self, text: str, length: int) -> tuple[list[int], int]:
        """At most `length` tokens, the last one eos, and the number of cut tokens."""
        ids = self._backend.encode(text, add_special_tokens=False).ids
        return [*ids[: length - 1], self._eos], max(0, len(ids) - (length - 1))


class TargetText:
    """`decoder_input_ids`: the start token, then the text; `labels`: the text, then eos; int64 [T] each.

    Raises:
        DataError: neither the tokenizer nor the model's configuration has a token to start with.
    """

    def __init__(self, inputs: FormatInputs, encoder: TextEncoder) -> None:
        start = getattr(inputs.model, "decoder_start_token_id", None)
        if start is None:
            raise DataError(
                "the decoder has no token to start with: set model.config.decoder_start_token_id, or choose a "
                "tokenizer with a bos or pad token."
            )
        self._start: int = start
        self._encoder, self._length, self._training = encoder, inputs.sequence_length, inputs.training

    def fits(self, text: str) -> bool:
        """Whether the whole text fits."""
        return self._encoder.encode(text, self._length)[1] == 0

    def row(self, text: str) -> tuple[Row, int]:
        """The decoder's part of a row (in evaluation with the text itself), and the number of cut tokens."""
        labels, cut = self._encoder.encode(text, self._length)
        row = {"decoder_input_ids": ints([self._start, *labels[:-1]]), "labels": ints(labels)}
        return (row if self._training else {**row, "reference": as_bytes(text)}), cut


def ints(values: list[int]) -> npt.NDArray[np.int64]:
    """The values as an array of ids."""
    return np.array(values, dtype=np.int64)


def as_bytes(text: str) -> npt.NDArray[np.uint8]:
    """UTF-8 without zero bytes, with which a shorter text is padded."""
    return np.frombuffer(text.replace("\0", " ").encode(), dtype=np.uint8)
