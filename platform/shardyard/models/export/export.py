"""Writes a folder that `from_pretrained` of the objective's `Auto…` class and of `AutoTokenizer` can load."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig
from transformers.utils import logging as transformers_logging

from shardyard.models import generation
from shardyard.models.adapters.merging import merging
from shardyard.models.build import auto_class
from shardyard.models.export.layout import make_layout, units_of, units_of_names
from shardyard.models.export.shards import write_index, write_shards
from shardyard.models.export.together import agreed
from shardyard.models.export.tokenizer import save_tokenizer
from shardyard.models.outside import OutsideModel, fitting_names, save_config
from shardyard.models.weight_source import Alone, DerivedWeights, InMemory, Ranks, WeightSource
from shardyard.objectives.registry import objective_spec
from shardyard.recipe.families import families_with_head
from shardyard.recipe.schema import Adapter

SHARD_BYTES = 5 * 10**9
ALONE = Alone()


def export_model(
    destination: Path,
    *,
    config: PreTrainedConfig,
    weights: Mapping[str, Tensor] | WeightSource,
    tokenizer: Any,
    card: str,
    objective: str = "causal_lm",
    processor: Any = None,
    adapter: Adapter | None = None,
    module: OutsideModel | None = None,
    generates: GenerationConfig | None = None,
    shard_bytes: int = SHARD_BYTES,
    ranks: Ranks = ALONE,
) -> Path:
    """Write weights (safetensors), configuration, tokenizer and model card, atomically.

    Args:
        destination: replaced if it exists.
        config: of the trained model.
        weights: every parameter by name, whole, in the precision to export; they are read when they are written.
        tokenizer: saved next to the model; None for an objective without text.
        card: text of README.md.
        processor: prepares images or audio for the model; has `save_pretrained`.
        adapter: of the trained model; it is merged into the weights, which become those of a plain model.
        module: a custom module on the meta device; its weights are saved under its own names.
        generates: how the model generates, if it does; None derives it from `config`.
        shard_bytes: largest size of a file of weights.
        ranks: those that write the model together; all of them call this, and reach `destination`.

    Raises:
        ModelError: the weights do not fit the configuration.
        OSError: the folder cannot be written; nothing is left behind, and an older export is kept.
    """
    source = weights if isinstance(weights, WeightSource) else InMemory(weights)
    model: Any = None
    if module is not None:
        units = units_of_names(*fitting_names(module, source.tensors))
    else:
        model, source = _model(config, source, objective, adapter)
        units = units_of(model, source.tensors)
    layout = make_layout(units, shard_bytes=shard_bytes, ranks=ranks.size)

    def finish(partial: Path) -> None:
        write_index(partial, layout, parameters=None if model is None else model.num_parameters())
        if module is not None:
            save_config(partial, module, source.tensors)
        else:
            _save_config(model, partial, generates)
            if not _is_known(model.config, config, objective):
                _whole(model.config, config).save_pretrained(partial)
        if tokenizer is not None:
            save_tokenizer(tokenizer, partial)
        if processor is not None:
            processor.save_pretrained(partial)
        (partial / "README.md").write_text(card, encoding="utf-8")

    return write_folder(destination, finish, lambda partial: write_shards(partial, layout, source, ranks), ranks)


def write_folder(
    destination: Path,
    write: Callable[[Path], None],
    write_together: Callable[[Path], None] | None = None,
    ranks: Ranks = ALONE,
) -> Path:
    """Let `write` fill a new folder, which then replaces `destination`; if it fails, an older folder is kept.

    Args:
        write: called on the first rank.
        write_together: called before it, on all ranks.
    """
    partial = destination.with_name(f".{destination.name}.partial")
    is_first = ranks.index == 0

    def clear() -> None:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)

    def complete() -> None:
        write(partial)
        _replace(partial, destination)

    try:
        agreed(ranks, clear if is_first else _nothing)
        if write_together is not None:
            write_together(partial)
        agreed(ranks, complete if is_first else _nothing)
    finally:
        if is_first:
            shutil.rmtree(partial, ignore_errors=True)
    return destination


def _nothing() -> None:
    """What the other ranks do meanwhile."""


def _model(
    config: PreTrainedConfig, source: WeightSource, objective: str, adapter: Adapter | None = None
) -> tuple[Any, WeightSource]:
    """The plain model on the meta device, and its weights."""
    transformers_logging.disable_progress_bar()
    dtypes = [tensor.dtype for tensor in source.tensors.values()]
    dtype = next((one for one in dtypes if one.is_floating_point), torch.float32)
    with torch.device("meta"):
        model = auto_class(objective, config.model_type).from_config(config, dtype=dtype)
    if adapter is not None:
        source = DerivedWeights(source, merging(source.tensors, adapter, model))
    if model.can_generate():
        # Text is generated with the cache that training turns off. Bodies and classifiers need none, and some families'
        # fail with it.
        for part in (model.config, *(getattr(model.config, name, None) for name in model.config.sub_configs)):
            if getattr(part, "use_cache", None) is not None:
                part.use_cache = True
    return model, source


def _save_config(model: Any, folder: Path, generates: GenerationConfig | None) -> None:
    model.config.dtype = str(model.dtype).removeprefix("torch.")
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    own: GenerationConfig | None = getattr(model, "generation_config", None)
    if own is not None:
        generates = generates or own
        generates.use_cache = True
        generation.write(folder, generates)


def _is_known(saved: PreTrainedConfig, config: PreTrainedConfig, objective: str) -> bool:
    """Whether the `Auto…` class of the objective finds a model by the configuration that the model has itself."""
    return type(saved) is type(config) or saved.model_type in families_with_head(objective_spec(objective))


def _whole(text: PreTrainedConfig, config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of a family of which only the part that reads text was trained (`emu3`, `mllama`)."""
    whole = copy.deepcopy(config)
    whole.text_config, whole.architectures = text, text.architectures
    return whole


def _replace(partial: Path, destination: Path) -> None:
    old = destination.with_name(f".{destination.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if destination.exists():
        destination.rename(old)
    try:
        partial.rename(destination)
    except OSError:
        if old.exists():
            old.rename(destination)
        raise
    shutil.rmtree(old, ignore_errors=True)
