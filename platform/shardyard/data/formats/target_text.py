"""The decoder side of an encoder–decoder: one text.

Legend: T = tokens of the text with its special tokens.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from shardyard.data.formats.inputs import FormatInputs
from shardyard.data.stream.rows import Row
from shardyard.data.text_frame import Frame, target_frame, text_frame
from shardyard.data.tokenizers.tokenizer import plain_backend

IGNORED = -100
# In evaluation, rows also contain the texts in UTF-8, padded with zero bytes.
PADDING = {"input_ids": 0, "attention_mask": 0, "decoder_input_ids": 0, "labels": IGNORED}
TEXT_PADDING = {"reference": 0, "source_text": 0}


class TextEncoder:
    """Encodes a text with the special tokens that its tokenizer adds, truncated to a length; cut tokens are counted.

    Raises:
        DataError: the tokenizer has no token that ends a text.
    """

    def __init__(self, inputs: FormatInputs) -> None:
        self._frame = text_frame(inputs.text_tokenizer, inputs.data, ends=False)
        self._backend = plain_backend(inputs.text_tokenizer)

    def encode(self, text: str, length: int, frame: Frame | None = None) -> tuple[list[int], int]:
        """At most `length` tokens, and the number of cut tokens; `frame` replaces the special tokens of a source."""
        ids = self._backend.encode(text, add_special_tokens=False).ids
        return (frame or self._frame).around(ids, length)


class TargetText:
    """`decoder_input_ids`: the start token, then the labels but the last; `labels`: the text as the tokenizer makes it
    of a target, without a start token; int64 [T] each.

    Raises:
        DataError: neither the tokenizer nor the model's configuration has a token to start with.
    """

    def __init__(self, inputs: FormatInputs, encoder: TextEncoder) -> None:
        self._frame = target_frame(inputs.text_tokenizer, inputs.model, inputs.data)
        self._encoder, self._length, self._training = encoder, inputs.sequence_length, inputs.training

    def fits(self, text: str) -> bool:
        """Whether the whole text fits."""
        return self._encode(text)[1] == 0

    def row(self, text: str) -> tuple[Row, int]:
        """The decoder's part of a row (in evaluation with the text itself), and the number of cut tokens."""
        labels, cut = self._encode(text)
        row = {"decoder_input_ids": ints([self._frame.start, *labels[:-1]]), "labels": ints(labels)}
        return (row if self._training else {**row, "reference": as_bytes(text)}), cut

    def _encode(self, text: str) -> tuple[list[int], int]:
        return self._encoder.encode(text, self._length, self._frame.labels)


def ints(values: list[int]) -> npt.NDArray[np.int64]:
    """The values as an array of ids."""
    return np.array(values, dtype=np.int64)


def as_bytes(text: str) -> npt.NDArray[np.uint8]:
    """UTF-8 without zero bytes, with which a shorter text is padded."""
    return np.frombuffer(text.replace("\0", " ").encode(), dtype=np.uint8)
