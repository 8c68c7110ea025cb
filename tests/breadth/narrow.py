"""A small configuration of a model type with which plain transformers trains, as a recipe takes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig

from breadth.defaults import completed
from shardyard.models.probes.as_fields import as_fields
from shardyard.models.probes.narrow import Effort, NotNarrowedError, narrow_config
from shardyard.models.probes.narrow import Narrow as Copy
from shardyard.models.size.row_shapes import row_shape
from shardyard.recipe.schema import Data, Image, Source

VOCABULARY = 512
POSITIONS = 128
END = 2
# Positions of the sound of two seconds.
WHOLE_SECONDS = 100
LABELS = 6
START_AND_END = 2
MOST_PARAMETERS = 60_000_000
# Pictures are tried in several sizes.
EFFORT, EFFORT_WITH_PICTURES = Effort(60.0, 60), Effort(60.0, 10)
# The pictures of models that classify them; None is the size of the family's default.
IMAGES = (32, 64, None)


@dataclass(frozen=True)
class Narrow:
    """A small configuration: `config` are the fields that differ from the family's defaults, as a recipe takes them.

    image_size: height and width of its pictures; None for the default of the family.
    sections: what else a recipe for it needs.
    """

    config: dict[str, Any]
    image_size: int | None = None
    parameters: int = 0
    sections: dict[str, Any] = field(default_factory=dict)


class InvalidInTransformersError(Exception):
    """Plain transformers trains with no configuration that was tried."""


def find(family: str, auto_class: str) -> Narrow:
    """The smallest configuration tried with which plain transformers does a forward and a backward pass.

    Raises:
        InvalidInTransformersError: there is none; the text has messages of transformers.
    """
    try:
        default = AutoConfig.for_model(family)
        whole = completed(family)
    except Exception as error:
        raise InvalidInTransformersError(f"default configuration: {_text(error)}") from error
    found: list[Narrow] = []

    def check(candidate: Copy) -> None:
        fields = _fields(family, default, candidate.config)
        size = fields.get("image_size") if pictures else None
        found.append(Narrow(fields, size, train_plainly(family, auto_class, fields, size)))

    pictures = auto_class == "AutoModelForImageClassification"
    images = IMAGES if pictures and hasattr(default, "image_size") else (None,)
    effort = EFFORT_WITH_PICTURES if len(images) > 1 else EFFORT
    try:
        narrow_config(
            whole, auto_class, check=check, vocabulary=VOCABULARY, positions=POSITIONS, images=images, effort=effort
        )
    except NotNarrowedError as error:
        raise InvalidInTransformersError(" ".join(str(error).split())) from error
    return found[-1]


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def _fields(family: str, default: PreTrainedConfig, config: PreTrainedConfig) -> dict[str, Any]:
    """The fields of a configuration that a recipe has to give."""
    changed = as_fields(family, config)
    if "max_source_positions" in changed and hasattr(default, "num_mel_bins"):
        changed["max_source_positions"] = WHOLE_SECONDS
    return changed


def train_plainly(family: str, auto_class: str, config: dict[str, Any], image_size: int | None) -> int:
    """A forward and a backward pass of plain transformers; returns the number of parameters.

    Raises:
        Exception: whatever transformers raises; RuntimeError for too many parameters or a value that is not finite.
    """
    made = plain_config(family, config, START_AND_END if auto_class == "AutoModelForQuestionAnswering" else LABELS)
    of = getattr(transformers, auto_class)
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in of.from_config(made).parameters())
    if not 0 < parameters < MOST_PARAMETERS:
        raise RuntimeError(f"{parameters} parameters")
    torch.manual_seed(0)
    model = of.from_config(made, dtype=torch.float32).train()
    batch = _BATCHES.get(auto_class)
    if batch is None:
        return parameters
    inputs = batch(made, image_size)
    try:
        loss = model(**inputs).get("loss")
    except (ValueError, TypeError):  # some heads compute no loss for such rows, or none at all
        loss = None
    if loss is None:
        output = model(**{name: value for name, value in inputs.items() if name != "labels"})
        loss = next(value for value in (output.get("logits"), output[0]) if value is not None).float().sum()
    loss.backward()
    if not torch.isfinite(loss):
        raise RuntimeError(f"the loss is {float(loss)}")
    return parameters


def plain_config(family: str, config: dict[str, Any], labels: int = LABELS) -> PreTrainedConfig:
    """The configuration with a vocabulary and special tokens, as a user of transformers sets them."""
    text = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": END, "pad_token_id": 0}
    default = AutoConfig.for_model(family)
    if "text_config" in default.sub_configs:
        config = {**config, "text_config": {**config.get("text_config", {}), **text}}
    elif hasattr(default, "vocab_size"):
        start = {"decoder_start_token_id": 0} if default.is_encoder_decoder else {}
        config = {**text, **start, **config}
    made = AutoConfig.for_model(family, **config, num_labels=labels)
    made.architectures, made.use_cache = [], False
    return made


Batch = Callable[[PreTrainedConfig, int | None], dict[str, Tensor]]


def _ids(rows: int = 2, length: int = 16) -> Tensor:
    ids = torch.arange(rows * length).view(rows, length) + 5
    ids[:, -1] = END  # the classifiers of BART and others read the last end token
    return ids


def _question_and_context() -> Tensor:
    ids = _ids()
    ids[:, 4:6] = END  # Longformer attends from every token before the first of three
    return ids


def _text_batch(**labels: Tensor) -> Batch:
    return lambda config, size: {"input_ids": _ids(), "attention_mask": torch.ones_like(_ids()), **labels}


def _image_batch(config: PreTrainedConfig, size: int | None) -> dict[str, Tensor]:
    side = size or getattr(config, "image_size", None) or 224
    height, width = (side, side) if isinstance(side, int) else side
    pixels = torch.randn(2, getattr(config, "num_channels", 3), height, width)
    return {"pixel_values": pixels, "labels": torch.tensor([0, 1])}


def _sound_batch(config: PreTrainedConfig, size: int | None) -> dict[str, Tensor]:
    shapes, _ = row_shape("audio_classification")(config, Data(train=[Source(path="x")]), Image())
    values = {name: torch.randn(2, *shape.shape[1:]) for name, shape in shapes.items()}
    return {**values, "labels": torch.tensor([0, 1])}


_BATCHES: dict[str, Batch] = {
    "AutoModelForCausalLM": _text_batch(labels=_ids()),
    "AutoModelForMaskedLM": _text_batch(labels=_ids()),
    "AutoModelForSeq2SeqLM": _text_batch(labels=_ids()),
    "AutoModelForSequenceClassification": _text_batch(labels=torch.tensor([0, 1])),
    "AutoModelForTokenClassification": _text_batch(labels=_ids() % LABELS),
    "AutoModelForQuestionAnswering": lambda config, size: {
        "input_ids": _question_and_context(),
        "attention_mask": torch.ones(2, 16, dtype=torch.long),
        "start_positions": torch.tensor([1, 2]),
        "end_positions": torch.tensor([2, 3]),
    },
    "AutoModelForMultipleChoice": lambda config, size: {
        "input_ids": _ids(4).view(2, 2, 16),
        "attention_mask": torch.ones(2, 2, 16, dtype=torch.long),
        "labels": torch.tensor([0, 1]),
    },
    "AutoModel": _text_batch(),
    "AutoModelForImageClassification": _image_batch,
    "AutoModelForAudioClassification": _sound_batch,
}
