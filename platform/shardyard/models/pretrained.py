"""Pretrained weights: locating them, and loading a model with them."""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import pickle
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch
from huggingface_hub import try_to_load_from_cache
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from shardyard.errors import ModelError
from shardyard.models.slices.sources import Sources
from shardyard.models.vocabulary import Resized
from shardyard.suggest import suggestion

_SAMPLE_BYTES = 1 << 20


@dataclass(frozen=True)
class Loaded:
    """A pretrained model and its mismatches: `new` parameters get random values, `unused` weights are dropped, and
    `resized` embeddings have rows for another vocabulary. `sources` has the parameters whose values have not been read
    yet."""

    model: Any
    new: tuple[str, ...]
    unused: tuple[str, ...]
    resized: Resized | None = None
    sources: Sources = field(default_factory=Sources)


class Place(TypedDict):
    """Arguments of `from_pretrained`."""

    pretrained_model_name_or_path: str
    revision: NotRequired[str]


def place(name: str) -> Place:
    """`from_pretrained`'s arguments for a folder, a hub id, or a hub id with a revision (`org/name@revision`)."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return {"pretrained_model_name_or_path": str(folder)}
    hub_id, _, revision = name.partition("@")
    found: Place = {"pretrained_model_name_or_path": hub_id}
    if revision:
        found["revision"] = revision
    return found


def pretrained_config(name: str, **overrides: Any) -> PreTrainedConfig:
    """The configuration of pretrained weights, with some of its fields replaced."""
    return AutoConfig.from_pretrained(**place(name), **overrides)


def hub_commit(name: str) -> str | None:
    """The commit that a hub id currently resolves to; None for a folder."""
    pretrained_config(name)  # Raises if the name does not exist; otherwise fills the cache.
    if Path(name).expanduser().is_dir():
        return None
    location = place(name)
    found = try_to_load_from_cache(
        location["pretrained_model_name_or_path"], "config.json", revision=location.get("revision")
    )
    # A cached file lies in `snapshots/COMMIT/`. Since transformers 5, configurations no longer hold their commit.
    return Path(found).parent.name if isinstance(found, str) else None


def fingerprint(folder: Path) -> str:
    """SHA-256 (hex) over name, size, first and last MiB of each file: training changes every part of a weight file."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file() and path.name[0] != "."):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            digest.update(file.read(_SAMPLE_BYTES))
            file.seek(max(0, size - _SAMPLE_BYTES))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def load_weights(
    auto: Any,
    name: str,
    config: PreTrainedConfig,
    *,
    seed: int,
    reading: AbstractContextManager[object] | None = None,
    **options: Any,
) -> Loaded:
    """A model of the class that `auto` chooses, with the weights of `name` in fp32.

    Parameters missing from the weights, such as a new head, depend only on `seed`.

    Args:
        auto: an `Auto…` class of transformers.
        name: folder or hub id.
        config: of the model to build.
        seed: the recipe's seed.
        reading: context in which the weights are read.
        options: further arguments of `from_pretrained`.

    Raises:
        ModelError: the weights hold more than tensors, or belong to another model: they contain less than half of the
            parameters of its body.
    """
    transformers_logging.disable_progress_bar()
    # The run reports missing and unused weights itself.
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        with reading or contextlib.nullcontext():
            model, report = auto.from_pretrained(
                **place(name), config=config, output_loading_info=True, **{"dtype": torch.float32, **options}
            )
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"model.pretrained: a weight file of {name} holds more than tensors, and reading it could execute code of "
            "its author; use a version of it in safetensors."
        ) from error
    finally:
        transformers_logging.set_verbosity(before)
        torch.set_rng_state(state)
    new = tuple(sorted(report["missing_keys"]))
    _check_body(model, new, name)
    return Loaded(model, new, tuple(sorted(report["unexpected_keys"])))


def _check_body(model: PreTrainedModel, new: Sequence[str], name: str) -> None:
    body = {name for name, _ in model.base_model.named_parameters(prefix=model.base_model_prefix)}
    missing = body & set(new)
    if len(missing) > len(body) / 2:
        raise ModelError(
            f"model.pretrained: {name} lacks {len(missing)} of the {len(body)} parameters of this "
            f"{model.config.model_type} ({', '.join(sorted(missing)[:3])}, …), so it holds another model; check "
            "model.family and model.config."
        )


def freeze(model: nn.Module, patterns: Iterable[str]) -> list[str]:
    """Freeze the parameters whose names match a pattern (`*` matches anything); returns their names.

    Raises:
        ModelError: a pattern matches nothing.
    """
    parameters = dict(model.named_parameters())
    frozen = matching(parameters, patterns, "model.freeze")
    for name in frozen:
        parameters[name].requires_grad_(False)
    if len(frozen) == len(parameters):
        raise ModelError("model.freeze matches every parameter, so nothing is left to train; leave some out.")
    return frozen


def matching(parameters: Iterable[str], patterns: Iterable[str], field: str) -> list[str]:
    """The names that match a pattern (`*` matches anything), each once.

    Raises:
        ModelError: a pattern matches nothing; the message names the recipe's `field`.
    """
    names, found = list(parameters), dict[str, None]()
    for pattern in patterns:
        matched = fnmatch.filter(names, pattern)
        if not matched:
            near = suggestion(pattern, [*_parts(names), *names])
            raise ModelError(f"{field}: no parameter is called {pattern!r}; {near}")
        found.update(dict.fromkeys(matched))
    return list(found)


def _parts(parameters: Iterable[str]) -> list[str]:
    """Patterns for whole parts of a model, the largest first: `bert.*`, `bert.encoder.*`."""
    found: dict[str, None] = {}
    for name in parameters:
        pieces = name.split(".")
        found.update(dict.fromkeys(".".join(pieces[:depth]) + ".*" for depth in range(1, len(pieces))))
    return sorted(found, key=lambda part: part.count("."))
