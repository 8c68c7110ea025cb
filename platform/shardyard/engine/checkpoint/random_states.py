"""The state of every random generator of a rank, as JSON in a checkpoint."""

from __future__ import annotations

import base64
import hashlib
import json
import random
from typing import Any, NotRequired, TypedDict, cast

import numpy
import torch

from shardyard.engine.checkpoint.shards import Shards


class RandomStates(TypedDict):
    """The state of every random generator that dropout or user code uses; tensors in base64."""

    python: list[Any]
    numpy: list[Any]
    torch: str
    cuda: NotRequired[str]


def random_states() -> RandomStates:
    """The state of every random generator that dropout or user code uses, as JSON."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = cast("tuple[Any, ...]", numpy.random.get_state(legacy=True))
    states: RandomStates = {
        "python": [version, list(internal), gauss],
        "numpy": [name, keys.tolist(), position, has_gauss, cached],
        "torch": _pack(torch.get_rng_state()),
    }
    if torch.cuda.is_available():
        states["cuda"] = _pack(torch.cuda.get_rng_state())
    return states


def begin_random(seed: int) -> None:
    """Seed every random generator that dropout or user code uses."""
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _set_random_states(states: RandomStates) -> None:
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    numpy.random.set_state((name, numpy.array(keys, dtype=numpy.uint32), position, has_gauss, cached))
    torch.set_rng_state(_unpack(states["torch"]))
    if "cuda" in states:
        torch.cuda.set_rng_state(_unpack(states["cuda"]))


def continue_random(shards: Shards, source: int, further: int | None = None) -> None:
    """Set the random states that a rank had in a checkpoint.

    Args:
        source: the number of the rank.
        further: of a rank that the checkpoint does not have; it gets states of its own, which follow from this number.
    """
    text = shards.random(source)
    _set_random_states(json.loads(text))
    if further is not None:
        begin_random(int.from_bytes(hashlib.sha256(f"{text}{further}".encode()).digest()[:4], "big"))


def _pack(tensor: torch.Tensor) -> str:
    return base64.b64encode(tensor.numpy().tobytes()).decode()


def _unpack(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
