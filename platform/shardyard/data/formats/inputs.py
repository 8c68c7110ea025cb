"""The inputs of a row format: its sections of the recipe, the tokenizer, and the model's configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerFast

from shardyard.recipe import schema


@dataclass(frozen=True)
class FormatInputs:
    """Inputs of one format.

    `model` is the transformers configuration of the model, which gives image sizes, audio lengths and ids of special
    tokens. `training` turns augmentation on. `processor` is the model's own, for the formats whose rows it makes.
    """

    data: schema.Data
    tokenizer: PreTrainedTokenizerFast | None = None
    model: Any = None
    masking: schema.Masking = field(default_factory=schema.Masking)
    image: schema.Image = field(default_factory=schema.Image)
    audio: schema.Audio = field(default_factory=schema.Audio)
    answering: schema.Answering = field(default_factory=schema.Answering)
    embedding: schema.Embedding = field(default_factory=schema.Embedding)
    chat: schema.Chat = field(default_factory=schema.Chat)
    training: bool = True
    processor: Any = None

    @property
    def sequence_length(self) -> int:
        """Tokens of a row."""
        assert self.data.sequence_length is not None, "checked with the recipe"
        return self.data.sequence_length

    @property
    def text_tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer, for objectives with text."""
        assert self.tokenizer is not None, "an objective with text has a tokenizer"
        return self.tokenizer
