"""Writes a folder that `from_pretrained` of the objective's `Auto…` class and of `AutoTokenizer` can load."""

from __future__ import annotations

import copy
import errno
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig
from transformers.utils import logging as transformers_logging

from shardyard.errors import ModelError
from shardyard.models import generation
from shardyard.models.adapters.merging import merged
from shardyard.models.build import auto_class
from shardyard.models.export.tokenizer import save_tokenizer
from shardyard.models.outside import OutsideModel, save_module
from shardyard.objectives.registry import objective_spec
from shardyard.recipe.families import families_with_head
from shardyard.recipe.schema import Adapter


def export_model(
    destination: Path,
    *,
    config: PreTrainedConfig,
    weights: Mapping[str, Tensor],
    tokenizer: Any,
    card: str,
    objective: str = "causal_lm",
    processor: Any = None,
    adapter: Adapter | None = None,
    module: OutsideModel | None = None,
    generates: GenerationConfig | None = None,
) -> Path:
    """Write weights (safetensors), configuration, tokenizer and model card, atomically.

    Args:
        destination: replaced if it exists.
        config: of the trained model.
        weights: every parameter by name, whole, in the precision to export.
        tokenizer: saved next to the model; None for an objective without text.
        card: text of README.md.
        processor: prepares images or audio for the model; has `save_pretrained`.
        adapter: of the trained model; it is merged into the weights, which become those of a plain model.
        module: a custom module on the meta device; its weights are saved under its own names.
        generates: how the model generates, if it does; None derives it from `config`.

    Raises:
        ModelError: the weights do not fit the configuration.
        OSError: the folder cannot be written; nothing is left behind, and an older export is kept.
    """

    def write(partial: Path) -> None:
        if module is not None:
            with _full_disks():
                save_module(partial, module, weights)
        else:
            model = _model(config, weights, objective, adapter)
            _save(model, partial, generates)
            if not _is_known(model.config, config, objective):
                _whole(model.config, config).save_pretrained(partial)
        if tokenizer is not None:
            save_tokenizer(tokenizer, partial)
        if processor is not None:
            processor.save_pretrained(partial)
        (partial / "README.md").write_text(card, encoding="utf-8")

    return write_folder(destination, write)


def write_folder(destination: Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a new folder, which then replaces `destination`; if it fails, an older folder is kept."""
    partial = destination.with_name(f".{destination.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        write(partial)
        _replace(partial, destination)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return destination


def _model(
    config: PreTrainedConfig, weights: Mapping[str, Tensor], objective: str, adapter: Adapter | None = None
) -> Any:
    """A model that holds the given tensors without copying them; it is built on the meta device."""
    transformers_logging.disable_progress_bar()
    dtype = next((tensor.dtype for tensor in weights.values() if tensor.is_floating_point()), torch.float32)
    with torch.device("meta"):
        model = auto_class(objective, config.model_type).from_config(config, dtype=dtype)
    if adapter is not None:
        weights = merged(weights, adapter, model)
    scalars = {name for name, parameter in model.named_parameters() if parameter.dim() == 0}
    shaped = {name: weight.reshape(()) if name in scalars else weight for name, weight in weights.items()}
    # Buffers that are not saved, such as rotary frequencies, have no weights here; loading recomputes them.
    try:
        problems = model.load_state_dict(shaped, strict=False, assign=True)
    except RuntimeError as error:
        raise ModelError(f"the weights do not fit the configuration: {' '.join(str(error).split())}") from error
    model.tie_weights()
    untouched = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if untouched or problems.unexpected_keys:
        unexpected = problems.unexpected_keys
        raise ModelError(
            f"the weights do not fit the configuration: missing {untouched[:3]}, unexpected {unexpected[:3]}"
        )
    if model.can_generate():
        # Text is generated with the cache that training turns off. Bodies and classifiers need none, and some families'
        # fail with it.
        for part in (model.config, *(getattr(model.config, name, None) for name in model.config.sub_configs)):
            if getattr(part, "use_cache", None) is not None:
                part.use_cache = True
    return model


def _save(model: Any, folder: Path, generates: GenerationConfig | None) -> None:
    can_generate = getattr(model, "generation_config", None) is not None
    if can_generate:
        generates = generates or model.generation_config
        generates.use_cache = True
        model.generation_config = GenerationConfig()
    with _full_disks():
        model.save_pretrained(folder)
    if can_generate:
        generation.write(folder, generates)


def _is_known(saved: PreTrainedConfig, config: PreTrainedConfig, objective: str) -> bool:
    """Whether the `Auto…` class of the objective finds a model by the configuration that the model has itself."""
    return type(saved) is type(config) or saved.model_type in families_with_head(objective_spec(objective))


def _whole(text: PreTrainedConfig, config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of a family of which only the part that reads text was trained (`emu3`, `mllama`)."""
    whole = copy.deepcopy(config)
    whole.text_config, whole.architectures = text, text.architectures
    return whole


@contextmanager
def _full_disks() -> Iterator[None]:
    try:
        yield
    except SafetensorError as error:
        # safetensors reports a full disk with its own exception type and the operating system's error number as text.
        number = re.search(r"code: (\d+)|os error (\d+)", str(error))
        raise OSError(int(number[1] or number[2]) if number else errno.EIO, str(error)) from error


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
