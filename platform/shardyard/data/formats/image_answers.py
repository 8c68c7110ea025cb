"""Questions about images with their answers, for models that read images and text.

T: tokens of a row, P: tokens of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from shardyard.data.formats.inputs import FormatInputs
from shardyard.data.formats.pictures_in_text import PicturesInText
from shardyard.data.media.images import ImageTransform
from shardyard.data.stream.examples import ExampleRows
from shardyard.data.stream.packing import IGNORED
from shardyard.data.stream.rows import Row, Tensors, collate
from shardyard.data.tokenizers.tokenizer import plain_backend
from shardyard.errors import DataError
from shardyard.recipe.image_tokens import image_tokens

# The prompt around image, question and answer: Liu et al. 2023 (Improved Baselines with Visual Instruction Tuning),
# in the form documented for LLaVA in transformers.
BEFORE_IMAGE, AFTER_IMAGE, BEFORE_ANSWER = "USER: ", "\n", " ASSISTANT:"


class Question(TypedDict):
    """An example; `image` is an input of `ImageTransform.tensor`."""

    image: object
    prompt: str
    response: str


class ImageAnswers(ExampleRows):
    """`USER: <P times the image token>\\nquestion ASSISTANT: answer` and the end token; targets only on the answer.

    Rows: `pixel_values` float32 [C, H, W]; `input_ids`, `attention_mask`, `labels` int64 [T], T up to `sequence_length`
    including the image's P tokens. Labels are shifted: -100 outside the answer and its end token.
    """

    def __init__(self, inputs: FormatInputs) -> None:
        super().__init__()
        tokenizer = inputs.text_tokenizer
        if tokenizer.eos_token_id is None:
            raise DataError("answers need a token that ends them, and the tokenizer has no eos token; choose another.")
        self._backend = plain_backend(tokenizer)
        self._transform = ImageTransform.for_model(inputs.image, inputs.model)
        self._length, self._training = inputs.sequence_length, inputs.training
        self._drop_inputs = inputs.data.drop_inputs
        self._end: int = tokenizer.eos_token_id
        num_tokens = image_tokens(inputs.image, inputs.model)
        head = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        self._head = [*head, *self._tokens(BEFORE_IMAGE), *[inputs.model.image_token_id] * num_tokens]
        self._fill = {"input_ids": self._end, "attention_mask": 0, "labels": IGNORED}
        if len(self._head) >= self._length:
            raise DataError(
                f"data.sequence_length is {self._length}, and an image alone takes {num_tokens} tokens; leave room "
                "for question and answer."
            )

    def row(self, piece: Question, generator: np.random.Generator) -> Row:
        """The row of an example with `image`, `prompt` and `response`; with `data.drop_inputs` the image is blank."""
        if piece.keys() != Question.__annotations__.keys():
            raise DataError(
                "LLaVA's plain format takes image, prompt and response; for several pictures a row, or conversations, "
                "set image.processor to model."
            )
        pixels = self._transform.tensor(piece["image"], generator if self._training else None)
        question = [*self._head, *self._tokens(f"{AFTER_IMAGE}{piece['prompt']}{BEFORE_ANSWER}")]
        ids = [*question, *self._tokens(f" {piece['response']}"), self._end]
        self.num_cut += max(0, len(ids) - (self._length + 1))
        kept = np.array(ids[: self._length + 1], dtype=np.int64)
        labels = np.where(np.arange(1, len(kept)) >= len(question), kept[1:], IGNORED)
        return {
            "pixel_values": np.zeros_like(pixels) if self._drop_inputs else pixels,
            "input_ids": kept[:-1],
            "attention_mask": np.ones(len(kept) - 1, dtype=np.int64),
            "labels": labels,
        }

    def collate(self, rows: Sequence[Row]) -> Tensors:
        """Tensors [B, …], padded to the longest row."""
        return collate(rows, self._fill)

    def _tokens(self, text: str) -> list[int]:
        return list(self._backend.encode(text, add_special_tokens=False).ids)


def make(inputs: FormatInputs) -> ImageAnswers | PicturesInText:
    """Create the format from its inputs: plain rows, or those of the model's own processor, if there is one.

    Raises:
        DataError: the tokenizer has no end token, or rows are too short for an image.
    """
    return ImageAnswers(inputs) if inputs.processor is None else PicturesInText(inputs)
