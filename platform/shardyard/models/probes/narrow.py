"""A narrow copy of a model: every kind of layer that its configuration has, with few and small weights."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig

from shardyard.errors import ModelError
from shardyard.models.probes.layer_kinds import layers_needed
from shardyard.models.probes.shrink import POSITIONS, VOCABULARY, Shrink, shrinks

MAX_PARAMETERS = 30_000_000
# Ids of the tokens with which a copy is tried and probed; those of special tokens are outside of this range.
FIRST_TOKEN, LAST_TOKEN = 5, 90
# Tokens of a row with which a copy is tried, at least as many as a probe's.
TOKENS = 24


class NotNarrowedError(ModelError):
    """No smaller configuration of a family was found that its model accepts."""


@dataclass(frozen=True)
class Effort:
    """When a search ends: some families take none of the smaller sizes.

    tries: for each number of layers. parameters: the most that a copy has.
    """

    seconds: float = 20.0
    tries: int = 40
    parameters: int = MAX_PARAMETERS


@dataclass(frozen=True)
class Narrow:
    """A narrow copy: its configuration, and its module in fp32 and evaluation mode, on the CPU."""

    config: PreTrainedConfig
    model: Any


Check = Callable[[Narrow], None]


def narrow_config(
    config: PreTrainedConfig,
    auto: str = "AutoModelForCausalLM",
    *,
    check: Check | None = None,
    vocabulary: int = VOCABULARY,
    positions: int = POSITIONS,
    row: int | None = None,
    images: Sequence[int | None] = (None,),
    complete: bool = False,
    effort: Effort = Effort(),
) -> PreTrainedConfig:
    """A configuration with all kinds of layers of `config`, fewer layers, and smaller sizes.

    Args:
        auto: the `Auto…` class of transformers that builds the model.
        check: is called with each candidate; one with which it raises is not chosen. By default, a causal model must
            compute finite logits of some tokens, and any other must be built.
        vocabulary, positions: entries of the vocabulary; most positions.
        row: tokens of a row; windows and chunks of attention that are shorter become shorter than a probe's documents.
        images: heights of pictures in pixels to try, in this order; None is that of `config`.
        complete: keep every kind of layer twice if it occurs so often, and all experts.
        effort: how long to search.

    Raises:
        NotNarrowedError: the model accepts no smaller configuration.
    """
    start = Shrink(None, vocabulary=vocabulary, positions=positions, row=row, experts=not complete)
    starts = [replace(start, image=image) for image in images]
    with _quiet():
        return _search(config, auto, None, check, starts, effort, times=(2,) if complete else (1, 2)).config


def narrow_model(
    config: PreTrainedConfig,
    auto: str = "AutoModelForCausalLM",
    *,
    attention: str | None = None,
    check: Check | None = None,
    vocabulary: int = VOCABULARY,
    positions: int = POSITIONS,
    row: int | None = None,
    effort: Effort = Effort(),
) -> Narrow:
    """As `narrow_config`, with the module: its weights are random, and none of them zero.

    Args:
        attention: implementation; None for the family's default.

    Raises:
        NotNarrowedError: the model accepts no smaller configuration.
    """
    start = Shrink(None, vocabulary=vocabulary, positions=positions, row=row)
    with _quiet():
        return _search(config, auto, attention, check, [start], effort)


def _search(
    config: PreTrainedConfig,
    auto: str,
    attention: str | None,
    check: Check | None,
    starts: Sequence[Shrink],
    effort: Effort,
    times: Sequence[int] = (1, 2),
) -> Narrow:
    check = check or (_computes if auto == "AutoModelForCausalLM" else _is_built)
    end = time.monotonic() + effort.seconds
    errors: list[str] = []
    text = config.get_text_config(decoder=True).to_dict()
    skeleton = _skeleton_with_all_layers(config, auto, starts[0])
    # Some families share weights between layers, and need every kind twice.
    for layers in (layers_needed(skeleton, number) for number in times):
        for shrink in _candidates(text, [replace(start, layers=layers) for start in starts], effort.tries):
            if time.monotonic() > end:
                break
            try:
                smaller = _with_config(config, shrink)
                narrow = Narrow(smaller, _random_model(smaller, auto, attention, effort.parameters))
                check(narrow)
            except Exception as error:  # noqa: BLE001 - families refuse sizes with any exception
                errors.append(f"{type(error).__name__}: {error}"[:200])
            else:
                return narrow
    reasons = "; ".join(list(dict.fromkeys(errors))[-3:])
    raise NotNarrowedError(f"no narrow copy of {config.model_type!r} can be made ({reasons or 'no size was tried'})")


def _candidates(text: dict[str, object], starts: Sequence[Shrink], tries: int) -> Iterator[Shrink]:
    """What is tried for a number of layers: with lists of stages shrunk, and as they are."""
    for stages, start in itertools.product((True, False) if len(starts) > 1 else (True,), starts):
        yield from itertools.islice(shrinks(text, replace(start, stages=stages)), tries)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of transformers, which are about sizes of ours."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)


def _skeleton_with_all_layers(config: PreTrainedConfig, auto: str, start: Shrink) -> nn.Module:
    """The model on the meta device with all of its layers; narrow if possible, because many experts take seconds."""
    text = config.get_text_config(decoder=True).to_dict()
    for shrink in itertools.islice(shrinks(text, start), 4):
        try:
            return _on_meta(_with_config(config, shrink), auto)
        except Exception:  # noqa: BLE001 - families refuse sizes with any exception
            continue
    try:
        return _on_meta(config, auto)
    except Exception as error:
        raise NotNarrowedError(f"{config.model_type!r} cannot be built: {type(error).__name__}: {error}") from error


def _with_config(config: PreTrainedConfig, shrink: Shrink) -> PreTrainedConfig:
    narrow: PreTrainedConfig = type(config).from_dict(shrink.values(config.to_dict()))
    return narrow


def _on_meta(config: PreTrainedConfig, auto: str, attention: str | None = None) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = getattr(transformers, auto).from_config(config, attn_implementation=attention)
    return model


def _random_model(config: PreTrainedConfig, auto: str, attention: str | None, most: int) -> Any:
    size = sum(parameter.numel() for parameter in _on_meta(config, auto, attention).parameters())
    if size > most:
        raise ValueError(f"{size} parameters are too many")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, auto).from_config(config, dtype=torch.float32, attn_implementation=attention)
        randomise(model)
    return model.eval()


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Add noise to all weights: projections and biases that begin at zero would hide what they pass on."""
    noise = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.is_floating_point():
            spread = float(parameter.std()) if parameter.numel() > 1 else 0.0
            scale = max(0.05, 0.3 * spread) if spread == spread else 0.05
            parameter.add_(torch.randn(parameter.shape, generator=noise) * scale)


@torch.no_grad()
def _computes(narrow: Narrow) -> None:
    ids = torch.arange(FIRST_TOKEN, FIRST_TOKEN + TOKENS)[None]  # [1, T]
    logits = narrow.model(input_ids=ids, use_cache=False).logits
    if not torch.isfinite(logits).all():
        raise ValueError("its logits are not finite")


def _is_built(narrow: Narrow) -> None:
    """Accepts every model that could be constructed."""
    assert isinstance(narrow.model, nn.Module)
