"""The narrow recipe of a dry run: every kind of layer and all options of a recipe, small widths, made-up data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from shardyard.engine.memory.hook import MEASURED_STEPS
from shardyard.launch.dry_run.made_up_data import made_up_source
from shardyard.launch.dry_run.narrow_weights import write_narrow_weights
from shardyard.launch.run.initial import for_planning
from shardyard.models.build import architecture_config, skeleton
from shardyard.models.probes.as_fields import as_fields
from shardyard.models.probes.narrow import Effort, narrow_config
from shardyard.models.size.measure import sizes
from shardyard.objectives.registry import objective_spec
from shardyard.planning.architecture import Architecture
from shardyard.planning.reduction import bucket_elements
from shardyard.recipe.loading.load import parse_recipe
from shardyard.recipe.mesh import mesh_shape
from shardyard.recipe.schema import Model, Recipe
from shardyard.units import format_count

# Bytes; rows of other kinds than plain text need tokens such as [MASK] and [PAD], which BERT's tokenizer has.
TOKENIZERS = {"bytes": 512, "wordpiece-docs-4k": 4096}
_PLAIN_ROWS = ("packed", "conversations", "preferences")
LENGTH = 64
# Some encoders count positions from their padding token on.
_POSITIONS_BEFORE = 8
MICRO_BATCH, ACCUMULATION = 2, 2
# By how much a vocabulary shrinks, as the widths do where a family allows it.
DIVISOR = 64
_EFFORT = Effort(60.0, 60)
# Fields of a configuration that a head on pretrained weights needs in the recipe.
_OF_HEADS = ("num_labels", "problem_type")
# Sections that train nothing, or that have other lengths in a few steps.
_LEFT_OUT = ("sample", "hooks", "job", "paper", "expected", "license", "added_tokens")


@dataclass(frozen=True)
class NarrowRecipe:
    """A narrow recipe, and in words what has become of the model."""

    recipe: Recipe
    text: str


def narrow_recipe(recipe: Recipe, ranks: int, folder: Path, runs_dir: Path) -> NarrowRecipe:
    """The narrow recipe of a dry run. It trains in four steps what the recipe trains, at the same ZeRO stage.

    Args:
        folder: made-up data and weights are written here.
        runs_dir: where `run:NAME` is looked up.

    Raises:
        ModelError: no narrow copy of the model can be made.
        UsageError: rows of the objective cannot be made up.
    """
    spec = objective_spec(recipe.objective)
    source = made_up_source(recipe.objective, folder)
    model = for_planning(recipe, runs_dir).model
    whole = _with_ids(architecture_config(model, vocabulary=None))
    rows = getattr(whole.get_text_config(), "vocab_size", None) if spec.text else None
    tokenizer = "bytes" if spec.rows in _PLAIN_ROWS or not spec.text else "wordpiece-docs-4k"
    vocabulary = max(TOKENIZERS[tokenizer], (rows or 0) // DIVISOR // 64 * 64)
    length = min(recipe.data.sequence_length or LENGTH, LENGTH)
    auto = spec.auto_class_of(model.family)
    positions = length if spec.rows in _PLAIN_ROWS else length + _POSITIONS_BEFORE
    narrow = narrow_config(whole, auto, vocabulary=vocabulary, positions=positions, complete=True, effort=_EFFORT)
    given: Any = recipe.model_dump(mode="json", exclude_unset=True)
    _set_dropout(narrow, given["model"].pop("dropout", None))
    given["model"] |= {"config": as_fields(model.family, narrow)}
    if rows is not None:
        given["model"]["config"]["vocab_size"] = narrow.get_text_config().vocab_size = vocabulary
    _weights(given, folder, narrow, auto)
    before, after = _size(model, whole, recipe.objective), _size(model, narrow, recipe.objective)
    if "parallel" in given:
        given["parallel"] = _axes(recipe, ranks, experts=after.layer.experts if after.layer else 0)
    given["zero"] = {**given.get("zero", {}), **_zero(recipe, model, narrow, after, before)}
    given |= {**_short(recipe, given, ranks, length), "tokenizer": tokenizer}
    given["data"]["train"] = [source]
    for name in _LEFT_OUT:
        given.pop(name, None)
    text = (
        f"{after.layers} of {before.layers} layers, {format_count(after.parameters)} of "
        f"{format_count(before.parameters)} parameters, made-up rows"
    )
    return NarrowRecipe(parse_recipe(given), text)


def _short(recipe: Recipe, given: Any, ranks: int, length: int) -> dict[str, object]:
    """Sections of a run of few steps and rows."""
    micro_batch = min(recipe.train.micro_batch or MICRO_BATCH, MICRO_BATCH)
    return {
        "name": f"{recipe.name}-dry-run",
        "data": {
            **_kept(given["data"], "isolate_documents", "packing", "isolation", "drop_inputs"),
            **({} if recipe.data.sequence_length is None else {"sequence_length": length}),
            "streams": ranks,
        },
        "train": {
            **_kept(given["train"], "precision", "gradient_clipping", "seed"),
            "steps": MEASURED_STEPS,
            "micro_batch": micro_batch,
            "global_batch": micro_batch * ACCUMULATION * ranks,
        },
        "schedule": {**given.get("schedule", {}), "warmup": 1},
        "checkpoint": {"every": MEASURED_STEPS, "keep": 1},
        "evaluate": {"every": MEASURED_STEPS, "rows": micro_batch * ranks},
        "tracking": {"every": 1, "wandb": {"mode": "disabled"}, "tags": ["dry-run"]},
        "cluster": {"workers": ranks, "gpus_per_worker": 0, "max_failures": 0},
    }


def _set_dropout(config: PreTrainedConfig, probability: float | None) -> None:
    """`model.dropout` in the configuration, but none of attention: CPUs have no fused kernel with dropout, and would
    store the scores that GPUs do not."""
    for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        for name, value in part.to_dict().items() if part is not None else ():
            if ("dropout" in name or "pdrop" in name) and isinstance(value, int | float) and type(value) is not bool:
                kept = value if probability is None else probability
                setattr(part, name, type(value)(0.0 if _is_of_attention(name) else kept))


def _is_of_attention(name: str) -> bool:
    """Whether a field is the dropout of attention; T5 has one field for all of its dropout."""
    return name.startswith("att") or name == "dropout_rate"


def _with_ids(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration with ids of special tokens, which a tokenizer or pretrained weights set later on: those
    outside of the vocabulary become its last one, and a decoder begins a text with the padding token."""
    text = config.get_text_config()
    rows = getattr(text, "vocab_size", None)
    for name, value in text.to_dict().items():
        if name.endswith("_token_id") and isinstance(value, int) and rows is not None and value >= rows:
            setattr(text, name, rows - 1)
    if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = getattr(text, "pad_token_id", None) or 0
    return config


def _weights(given: Any, folder: Path, narrow: PreTrainedConfig, auto: str) -> None:
    """Narrow weights in place of those that the recipe begins with or learns from."""
    teacher = given.get("distillation", {}).get("teacher")
    if given["model"].get("pretrained") is None and teacher is None:
        return
    weights = str(write_narrow_weights(folder / "pretrained", narrow, auto))
    if given["model"].get("pretrained") is not None:
        given["model"] |= {"pretrained": weights, "config": _kept(given["model"].get("config", {}), *_OF_HEADS)}
        (given["model"].get("adapter") or {}).pop("pretrained", None)
    if teacher is not None:
        given["distillation"]["teacher"] = weights


def _size(model: Model, config: PreTrainedConfig, objective: str) -> Architecture:
    return sizes(skeleton(model, config, objective), config, model.label)


def _zero(
    recipe: Recipe, model: Model, narrow: PreTrainedConfig, after: Architecture, before: Architecture
) -> dict[str, int]:
    """Buckets and gathered weights in proportion to a block; vectors stay whole on each rank, as in wide models."""
    scale = after.largest_block_parameters / max(1, before.largest_block_parameters)
    mesh = mesh_shape(recipe, recipe.cluster.workers)
    bucket = bucket_elements(recipe.zero, mesh.data * mesh.sequence, before.trained_parameters)
    parameters = skeleton(model, narrow, recipe.objective).parameters()
    vectors = max((one.numel() for one in parameters if one.dim() < 2), default=0)
    return {
        "bucket_bytes": max(1000, int(4 * bucket * scale)),
        "live_parameters": int(recipe.zero.live_parameters * scale),
        "persistence_threshold": min(recipe.zero.persistence_threshold, vectors + 1),
    }


def _axes(recipe: Recipe, ranks: int, experts: int) -> dict[str, int]:
    """Two ranks along each axis along which the recipe has several, as long as there are so many; along `expert` the
    most that divide ranks and experts."""
    sizes, left = {}, ranks
    for axis in ("tensor", "sequence"):
        sizes[axis] = 2 if getattr(recipe.parallel, axis) > 1 and left % 2 == 0 else 1
        left //= sizes[axis]
    most = min(left, recipe.parallel.expert)
    return {
        **sizes,
        "expert": max(size for size in range(1, most + 1) if left % size == 0 and experts % size == 0),
    }


def _kept(section: Any, *names: str) -> dict[str, object]:
    return {name: section[name] for name in names if name in section}
