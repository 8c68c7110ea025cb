"""The inputs of objectives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shardyard.recipe import schema
from shardyard.recipe.isolation import Isolation

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class ObjectiveInputs:
    """The sections of a recipe that objectives read, the tokenizer, and the model's configuration (`model`).

    `sequence_length` is the maximum number of tokens of a row, and so of decoded texts. `packing`: rows hold several
    conversations. `decoder_prompt`: tokens with which every text of a decoder begins; none for the start token of the
    model. `isolation` is how the documents of a row are kept apart. `logits_chunk`: most tokens whose logits exist at
    the same time; 0 for all. `frozen` is the teacher of a distillation or the
    reference model of preference tuning: called like a model, it returns logits without gradients. `data_group` is the
    group of data-parallel ranks; None if this rank reads all rows of a global batch.
    """

    loss: schema.Loss = field(default_factory=schema.Loss)
    audio: schema.Audio = field(default_factory=schema.Audio)
    experts: schema.Experts = field(default_factory=schema.Experts)
    preference: schema.Preference = field(default_factory=schema.Preference)
    distillation: schema.Distillation = field(default_factory=schema.Distillation)
    answering: schema.Answering = field(default_factory=schema.Answering)
    embedding: schema.Embedding = field(default_factory=schema.Embedding)
    ranking: schema.Ranking = field(default_factory=schema.Ranking)
    regression: schema.Regression = field(default_factory=schema.Regression)
    evaluate: schema.Evaluate = field(default_factory=schema.Evaluate)
    sequence_length: int | None = None
    packing: bool = False
    decoder_prompt: tuple[int, ...] = ()
    tokenizer: Any = None
    model: Any = None
    isolation: Isolation = "positions"
    logits_chunk: int = 0
    frozen: Callable[..., Any] | None = None
    data_group: ProcessGroup | None = None
