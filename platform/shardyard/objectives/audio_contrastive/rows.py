"""Recordings with descriptions, as CLAP reads them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shardyard.data.formats.inputs import FormatInputs
from shardyard.data.formats.recordings import Recording, Recordings
from shardyard.data.formats.target_text import TextEncoder, ints
from shardyard.data.stream.rows import Row, Tensors, collate
from shardyard.errors import DataError


class Descriptions(Recordings):
    """Rows of `input_features` float32 [1, F, M] and the description, as its tokenizer makes it: `input_ids` and
    `attention_mask` int64 [T], T up to `sequence_length`.

    F: frames of the longest recording, which a shorter one is repeated to fill; M: Mel bins.
    """

    def __init__(self, inputs: FormatInputs) -> None:
        super().__init__(inputs)
        self._encoder, self._length = TextEncoder(inputs), inputs.sequence_length
        text = inputs.model.text_config
        needed = self._length + text.pad_token_id + 1
        if needed > text.max_position_embeddings:
            raise DataError(
                f"clap counts positions from {text.pad_token_id + 1} on, so texts of {self._length} tokens need "
                f"max_position_embeddings of at least {needed} in model.config.text_config; it is "
                f"{text.max_position_embeddings}."
            )
        self._padding = {"input_ids": text.pad_token_id, "attention_mask": 0}

    def row(self, piece: Recording, generator: np.random.Generator) -> Row:
        """The row of an example.

        Raises:
            UnusableRowError: the recording is too long.
        """
        heard = self.heard(self.samples(piece, generator), generator)
        ids, cut = self._encoder.encode(piece["text"], self._length)
        self.num_cut += cut
        return {**heard, "input_ids": ints(ids), "attention_mask": ints([1] * len(ids))}

    def collate(self, rows: Sequence[Row]) -> Tensors:
        """Tensors [B, …]; texts are padded with the token after which the model counts positions."""
        return collate(rows, self._padding)


def make(inputs: FormatInputs) -> Descriptions:
    """Create the format from its inputs.

    Raises:
        DataError: the table of positions is too short, or the model fuses parts of long recordings.
    """
    return Descriptions(inputs)
