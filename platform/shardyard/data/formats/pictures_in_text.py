"""Conversations with pictures as the model's own processor makes them, for every vision–language family.

B: rows of a batch, T: tokens of a row
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from shardyard.data.chat import TextRow
from shardyard.data.chat.conversation import weight_of
from shardyard.data.formats.conversations import has_target, weighted, weighted_alike
from shardyard.data.formats.inputs import FormatInputs
from shardyard.data.media.images import decoded
from shardyard.data.multimodal.augment import augmented
from shardyard.data.multimodal.conversation import (
    Message,
    chat_of,
    conversation,
    num_places,
    prepare_processor,
    text_of,
    written,
)
from shardyard.data.multimodal.encode import Read, read, read_suffix, takes_suffix
from shardyard.data.stream.examples import ExampleRows
from shardyard.data.stream.packing import IGNORED
from shardyard.data.stream.rows import Row, Tensors
from shardyard.data.turns import check_turns, repairs
from shardyard.errors import UnusableRowError


class PicturesInText(ExampleRows):
    """A conversation with at least one picture in the processor's chat template; targets only on the answers.

    Rows hold the processor's tensors for one text, as it returns them: `input_ids`, `attention_mask` and whatever else
    is a position each [1, T, …], pictures [pictures, …] or [1, pictures, …] as the family has them; and `labels`
    int64 [1, T]. Labels are shifted: -100 outside answers. `target_weights` float32 [1, T] are those of the labels, in
    batches in which one of them is not 1.
    """

    drops = True

    def __init__(self, inputs: FormatInputs) -> None:
        super().__init__()
        assert inputs.processor is not None, "made with the other components of a recipe"
        # Its own copy, because training and evaluation prepare rows on separate threads.
        self._processor = copy.deepcopy(inputs.processor)
        prepare_processor(self._processor, inputs.chat)
        self._chat = None if takes_suffix(self._processor) else chat_of(self._processor, inputs.chat.loss_on)
        self._image, self._training, self._length = inputs.image, inputs.training, inputs.sequence_length
        self._drop_inputs = inputs.data.drop_inputs
        tokenizer = self._processor.tokenizer
        padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self._fill = {"input_ids": padding or 0, "labels": IGNORED, "target_weights": 0}
        self._names = _arguments_of(inputs.model)
        self._pictures = _picture_ids(self._processor)

    def row(self, piece: Any, generator: np.random.Generator) -> Row:
        """The row of the last answer, see `rows_of`."""
        rows = self.rows_of(piece, generator)
        if not rows:
            raise UnusableRowError("no answer of the conversation is trained")
        return rows[-1]

    def rows_of(self, piece: Any, generator: np.random.Generator) -> Sequence[Row]:
        """The rows of an example; see `conversation`, and `ConversationRows.rows_of` for when there are several.

        Raises:
            UnusableRowError: a turn is empty, there is no picture, or the template or the processor refuses the row.
        """
        if "messages" in piece:
            check_turns(piece["messages"])
        messages, values = conversation(piece)
        if not values:
            raise UnusableRowError("a row has no picture; on text alone, the objective instruction trains")
        pictures = [self._picture(value, generator) for value in values]
        if self._chat is None:
            return [self._row(self._read_suffix(messages, pictures))]
        rows = written(self._chat, piece, messages)
        return [self._row(self._read(row, pictures[: num_places(messages[: row.count])])) for row in rows]

    def learns(self, row: Row) -> bool:
        """Whether a token of an answer fits into the row."""
        return has_target(row["labels"])

    def repairs(self, piece: Any) -> Iterator[Any]:
        """Conversations with repaired turns."""
        turns = piece.get("messages")
        return ({**piece, "messages": repaired} for repaired in repairs(turns)) if turns else iter(())

    def collate(self, rows: Sequence[Row]) -> Tensors:
        """Tensors [B, …], padded at the end of each axis to the longest row, as the processor's own batches are."""
        rows = weighted_alike(rows)
        names = dict.fromkeys(name for row in rows for name in row)
        batch = {name: _joined([row[name] for row in rows if name in row], self._fill.get(name, 0)) for name in names}
        if "aspect_ratio_mask" in batch:
            # Mllama: a picture that is not there has one tile, so that attention among its tiles is defined.
            batch["aspect_ratio_mask"][batch["aspect_ratio_mask"].sum(-1) == 0, 0] = 1
        return batch

    def _picture(self, value: object, generator: np.random.Generator) -> Image.Image:
        picture = decoded(value, "RGB", self._image)
        if self._training:
            picture = augmented(picture, self._image, generator)
        return Image.new("RGB", picture.size) if self._drop_inputs else picture

    def _read(self, row: TextRow, pictures: Sequence[Image.Image]) -> Read:
        return read(self._processor, row, pictures, placeholder=self._processor.image_token)

    def _read_suffix(self, messages: Sequence[Message], pictures: Sequence[Image.Image]) -> Read:
        if [message["role"] for message in messages] != ["user", "assistant"] or "tool_calls" in messages[1]:
            raise UnusableRowError("PaliGemma reads one question and one answer a row")
        question, answer = messages
        return read_suffix(self._processor, text_of(question), text_of(answer), pictures, weight_of(answer))

    def _row(self, found: Read) -> Row:
        ids, following = found.tensors["input_ids"].numpy(), np.array([*found.weights[1:], 0.0], np.float32)[None]
        row = {name: value.numpy() for name, value in found.tensors.items() if name in self._names}
        row["labels"] = np.where(following > 0, np.roll(ids, -1), IGNORED)
        return self._fitted(weighted(row, following))

    def _fitted(self, row: Row) -> Row:
        """The row, cut to `sequence_length` tokens if no picture is cut and something is left to learn."""
        ids = row["input_ids"][0]
        excess = len(ids) - self._length
        if excess > 0:
            if np.isin(ids[self._length :], self._pictures).any():
                raise UnusableRowError(
                    "the pictures of a row reach beyond data.sequence_length; raise it, or make pictures smaller with "
                    "image.size or image.options",
                    f"{len(ids)} tokens of {self._length}",
                )
            row = {name: value[:, : self._length] if _is_text(name) else value for name, value in row.items()}
            row["labels"][:, -1] = IGNORED
            self.num_cut += excess
        return row


_POSITIONS = ("input_ids", "attention_mask", "labels", "target_weights", "cross_attention_mask")


def _is_text(name: str) -> bool:
    """Whether the second axis of a tensor is the positions of the text."""
    return name in _POSITIONS or name.endswith("token_type_ids")


def _joined(arrays: Sequence[npt.NDArray[Any]], fill: float) -> Tensor:
    """Arrays joined along the first axis; along the others they are padded to the largest."""
    largest = [max(sizes) for sizes in zip(*(array.shape[1:] for array in arrays), strict=True)]
    shape = (sum(len(array) for array in arrays), *largest)
    joined = np.full(shape, fill, dtype=arrays[0].dtype)
    done = 0
    for array in arrays:
        joined[(slice(done, done + len(array)), *map(slice, array.shape[1:]))] = array
        done += len(array)
    return torch.from_numpy(joined)


def _arguments_of(config: Any) -> frozenset[str]:
    """Names of the tensors that the model takes; a processor may return more."""
    model = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    return frozenset(inspect.signature(model.forward).parameters) - {"labels"}


def _picture_ids(processor: Any) -> list[int]:
    """Ids of the tokens that stand for a part of a picture."""
    names = ("image_token_id", "video_token_id", "boi_token_id")
    found = [getattr(where, name, None) for where in (processor, processor.tokenizer) for name in names]
    return [token for token in found if isinstance(token, int)]


def make(inputs: FormatInputs) -> PicturesInText:
    """Create the format from its inputs.

    Raises:
        DataError: the model has no processor that can be used here.
    """
    return PicturesInText(inputs)
