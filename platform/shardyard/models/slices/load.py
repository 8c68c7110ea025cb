"""A pretrained model without values: transformers builds it and assigns the weights, and nothing is read yet.

Transformers' own loading is run with shapes instead of values, so names, conversions, ties, and missing and unexpected
weights are settled as in `from_pretrained`. Missing weights get their random values at once. All others get a source,
from which whoever shards the model reads the part that a rank needs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from shardyard.models.pretrained import Loaded, load_weights
from shardyard.models.slices.quirks import (
    Conversion,
    Read,
    WholeNeededError,
    assign,
    has_adapter,
    keep,
    no_values,
    reading_by,
    settle_ties,
)
from shardyard.models.slices.sources import Converted, Resized, Result, Source, Sources, Stored, equal, whole
from shardyard.models.vocabulary import resize


def load_in_slices(
    auto: Any, name: str, config: PreTrainedConfig, *, seed: int, rows: int | None = None, **options: Any
) -> Loaded:
    """A model as `load_weights` gives it, whose parameters have shapes but no values, except missing ones.

    Args:
        auto, name, config, seed, options: as of `load_weights`.
        rows: resize the embeddings to so many rows.

    Raises:
        WholeNeededError: the weights cannot be read in slices.
        ModelError: as `load_weights`.
    """
    reader = _Reader()
    try:
        loaded = load_weights(auto, name, config, seed=seed, reading=reader.context(), **options)
        resized = None if rows is None else resize(loaded.model, rows, seed=seed)
    except (RuntimeError, NotImplementedError) as error:
        # A rule of this family needs values, or the weights do not fit: loading them whole tells.
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WholeNeededError(f"this {config.model_type} cannot be built of shapes alone: {first}") from error
    if has_adapter(loaded.model):
        raise WholeNeededError("they come with an adapter")
    kept = 0 if resized is None else min(resized.before, resized.after)
    sources = _stand_ins(loaded.model, reader.sources, kept, seed)
    return replace(loaded, resized=resized, sources=sources)


class _Reader:
    """Notes where transformers would read each weight; reads only buffers."""

    def __init__(self) -> None:
        self.sources: dict[str, Source] = {}

    def context(self) -> AbstractContextManager[None]:
        """Context in which `from_pretrained` reads by this."""
        return reading_by(self._load)

    def _load(self, model: PreTrainedModel, files: Sequence[str], load_config: Any) -> Any:
        if not all(file.endswith(".safetensors") for file in files):
            raise WholeNeededError("they are no safetensors files")
        stored = dict(_stored(files))
        tensors = {key: no_values(one.shape, torch.float32) for key, one in stored.items()}
        report, reads = assign(model, tensors, load_config)
        if any(read.layer.endswith("_extra_state") for read in reads):
            raise WholeNeededError("a module keeps more than tensors")
        for read in reads:
            self._note(model, read, stored)
        settle_ties(model, report, lambda one, other: equal(self.sources[one], self.sources[other]))
        for name, buffer in model.named_buffers():
            if buffer.is_meta and name in self.sources:
                owner, _, own = name.rpartition(".")
                value = keep(whole(self.sources[name], buffer.dtype))
                setattr(model.get_submodule(owner), own, value)
        return report

    def _note(self, model: PreTrainedModel, read: Read, stored: dict[str, Stored]) -> None:
        tensors = {pattern: [stored[key] for key in keys] for pattern, keys in read.keys.items()}
        if not read.converted:
            self.sources[read.layer] = next(iter(tensors.values()))[-1]
            return
        conversion = Conversion(read.transform, read.layer, model)
        made = conversion(
            {pattern: [no_values(one.shape, torch.float32) for one in found] for pattern, found in tensors.items()}
        )
        converted = Converted(conversion, tensors, {name: tensor.shape for name, tensor in made.items()})
        self.sources |= {name: Result(converted, name) for name in made}


def _stored(files: Sequence[str]) -> list[tuple[str, Stored]]:
    found = []
    for path in files:
        with safe_open(path, framework="pt", backend="pread") as file:
            keys = list(file.keys())
            shapes = [torch.Size(file.get_slice(key).get_shape()) for key in keys]
            found += [(key, Stored(Path(path), key, shape)) for key, shape in zip(keys, shapes, strict=True)]
    return found


def _stand_ins(model: nn.Module, by_name: dict[str, Source], kept: int, seed: int) -> Sources:
    """Replace parameters without values by ones of a single repeated zero, of which layers can be made and adapted."""
    made, sources = dict[nn.Parameter, nn.Parameter](), Sources()
    first = {parameter: name for name, parameter in model.named_parameters()}
    for owner_name, owner in model.named_modules():
        for own, parameter in list(owner.named_parameters(recurse=False, remove_duplicate=False)):
            if not parameter.is_meta:
                continue
            name = f"{owner_name}.{own}" if owner_name else own
            if parameter not in made:
                made[parameter] = nn.Parameter(
                    torch.zeros((), dtype=parameter.dtype).expand(parameter.shape), parameter.requires_grad
                )
            if name in by_name:
                key = f"{seed}/{first[parameter]}"  # as `resize` names them
                sources.setdefault(made[parameter], _sized(by_name[name], parameter, kept, key))
            setattr(owner, own, made[parameter])
    stand_ins = set(made.values())
    nowhere = [name for name, one in model.named_parameters() if one in stand_ins and one not in sources]
    if nowhere:
        raise WholeNeededError(f"the values of {', '.join(nowhere[:3])} are in no file")
    return sources


def _sized(source: Source, parameter: nn.Parameter, kept: int, key: str) -> Source:
    if source.shape == parameter.shape or math.prod(source.shape) == parameter.numel():
        return source
    return Resized(source, parameter.shape, kept, key)
