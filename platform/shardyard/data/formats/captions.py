"""Images with captions, for contrastive models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from shardyard.data.formats.inputs import FormatInputs
from shardyard.data.media.images import ImageTransform
from shardyard.data.multimodal.patches import patch_transform
from shardyard.data.stream.examples import ExampleRows
from shardyard.data.stream.rows import Row, Tensors, collate
from shardyard.data.text_frame import Frame, text_frame
from shardyard.data.tokenizers.tokenizer import plain_backend
from shardyard.errors import DataError
from shardyard.recipe.image_shape import takes_any_shape

# Model types that pool a text at the last position of a row of full length, without a mask; their processors fill it.
FILLED = frozenset({"siglip", "siglip2"})
# Model types whose text encoder, like RoBERTa's, numbers positions from its padding token on.
_COUNTED = frozenset({"altclip"})


class Caption(TypedDict):
    """An example; `image` is an input of `ImageTransform.tensor`."""

    image: object
    text: str


class Captions(ExampleRows):
    """An image and its caption, as its tokenizer makes it; it ends with the token at which the text encoder is pooled.

    Rows: `pixel_values` float32 [C, H, W], or the tensors of `PatchTransform`; `input_ids` and `attention_mask` int64
    [T], T up to `sequence_length`.
    """

    def __init__(self, inputs: FormatInputs) -> None:
        super().__init__()
        self._patches = patch_transform(inputs.image, inputs.model)
        self._transform = None if self._patches else ImageTransform.for_model(inputs.image, inputs.model)
        self._backend = plain_backend(inputs.text_tokenizer)
        self._end = _end_token(inputs)
        frame = text_frame(inputs.text_tokenizer, inputs.data, ends=False)
        self._frame = frame if self._end in frame.tail else Frame(frame.head, (*frame.tail, self._end))
        self._length = inputs.sequence_length
        self._training = inputs.training
        self._fills_rows = inputs.model.model_type in FILLED
        # SigLIP pads with the end token; the tokenizer of SigLIP 2 has a token of its own.
        own = inputs.text_tokenizer.pad_token_id if takes_any_shape(inputs.model) else None
        self._padding = self._end if own is None else own

    def row(self, piece: Caption, generator: np.random.Generator) -> Row:
        """The row of an example with `image` and `text`."""
        return {**self._image_row(piece["image"], generator), **self.text_row(piece["text"])}

    def _image_row(self, value: object, generator: np.random.Generator) -> Row:
        chance = generator if self._training else None
        if self._transform is not None:
            return {"pixel_values": self._transform.tensor(value, chance)}
        assert self._patches is not None
        return self._patches.tensors(value, chance)

    def text_row(self, text: str) -> Row:
        """The part of a row that is text."""
        tokens = self._backend.encode(text, add_special_tokens=False).ids
        framed, cut = self._frame.around(tokens, self._length)
        self.num_cut += cut
        ids = np.array(framed, dtype=np.int64)
        if not self._fills_rows:
            return {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        filled = np.full(self._length, self._padding, dtype=np.int64)
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
