"""Images with captions, for contrastive models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from shardyard.data.formats.inputs import FormatInputs
from shardyard.data.media.images import ImageTransform
from shardyard.data.stream.examples import ExampleRows
from shardyard.data.stream.rows import Row, Tensors, collate
from shardyard.data.text_frame import Frame, text_frame
from shardyard.data.tokenizers.tokenizer import plain_backend
from shardyard.errors import DataError

# Model types that pool a text at the last position of a row of full length, without a mask; their processors fill it.
FILLED = frozenset({"siglip"})
# Model types whose text encoder, like RoBERTa's, numbers positions from its padding token on.
_COUNTED = frozenset({"altclip"})


class Caption(TypedDict):
    """An example; `image` is an input of `ImageTransform.tensor`."""

    image: object
    text: str


class Captions(ExampleRows):
    """An image and its caption, as its tokenizer makes it; it ends with the token at which the text encoder is pooled.

    Rows: `pixel_values` float32 [C, H, W], `input_ids` and `attention_mask` int64 [T], T up to `sequence_length`.
    """

    def __init__(self, inputs: FormatInputs) -> None:
        super().__init__()
        self._transform = ImageTransform.for_model(inputs.image, inputs.model)
        self._backend = plain_backend(inputs.text_tokenizer)
        self._end = _end_token(inputs)
        frame = text_frame(inputs.text_tokenizer, inputs.data, ends=False)
        self._frame = frame if self._end in frame.tail else Frame(frame.head, (*frame.tail, self._end))
        self._length = inputs.sequence_length
        self._training = inputs.training
        self._fills_rows = inputs.model.model_type in FILLED

    def row(self, piece: Caption, generator: np.random.Generator) -> Row:
        """The row of an example with `image` and `text`."""
        pixels = self._transform.tensor(piece["image"], generator if self._training else None)
        return {"pixel_values": pixels, **self.text_row(piece["text"])}

    def text_row(self, text: str) -> Row:
        """The part of a row that is text."""
        tokens = self._backend.encode(text, add_special_tokens=False).ids
        framed, cut = self._frame.around(tokens, self._length)
        self.num_cut += cut
        ids = np.array(framed, dtype=np.int64)
        if not self._fills_rows:
            return {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        filled = np.full(self._length, self._end, dtype=np.int64)
        filled[: len(ids)] = ids
        return {"input_ids": filled}

    def collate(self, rows: Sequence[Row]) -> Tensors:
        """Tensors [B, …]. The encoder uses the first end token, so further end tokens serve as padding."""
        padding = {"input_ids": self._end, "attention_mask": 0}
        return collate(rows, {name: padding[name] for name in rows[0].keys() & padding.keys()})


def _end_token(inputs: FormatInputs) -> int:
    """The end token that the model uses: `text_config.eos_token_id`."""
    end = inputs.model.get_text_config().eos_token_id
    if not isinstance(end, int):
        raise DataError(
            "captions need a token that ends them, and the tokenizer has no eos token; choose another, such as bytes."
        )
    if end == 2:
        # transformers treats 2 as the mark of an old checkpoint and pools at the largest id instead.
        raise DataError(
            "the token that ends a caption has the id 2, which CLIP in transformers does not look for; choose another "
            "tokenizer, such as bytes."
        )
    return end


def make(inputs: FormatInputs) -> Captions:
    """Create the format from its inputs.

    Raises:
        DataError: the tokenizer has no token that can end a caption, or none for padding where the model needs one.
    """
    family = inputs.model.model_type
    if family in _COUNTED and inputs.model.get_text_config().pad_token_id is None:
        raise DataError(
            f"{family} counts positions from its padding token, and the tokenizer has none; choose one that has, such "
            "as unigram-docs-4k."
        )
    return Captions(inputs)
