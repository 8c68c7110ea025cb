"""What a decoder keeps of a token for the backward pass, counted on two short forward passes on the meta device."""

from __future__ import annotations

import contextlib

import torch
from torch import nn

from shardyard.errors import ModelError
from shardyard.models.quirks import no_padding_warned_of
from shardyard.models.size.row_cost import Passed, forward
from shardyard.planning.activations import Kept

# Two lengths tell what grows with the tokens from what grows with their pairs (a matrix of scores).
LENGTHS = (64, 128)


def kept_of(module: nn.Module) -> tuple[Kept, Kept] | None:
    """What `module`, a decoder on the meta device, keeps in 16 bits and in fp32; None if it takes no row there.

    The module is in fp32 afterwards.
    """
    found = []
    try:
        for dtype in (torch.bfloat16, torch.float32):
            module.to(dtype)
            found.append(_kept(*(_passed(module, length) for length in LENGTHS)))
    except ModelError:
        return None
    finally:
        with contextlib.suppress(RuntimeError):
            module.to(torch.float32)
    return found[0], found[1]


def _passed(module: nn.Module, length: int) -> Passed:
    with torch.device("meta"):
        ids = torch.zeros(1, length, dtype=torch.long)
    with no_padding_warned_of():
        return forward(module, {"input_ids": ids, "use_cache": False}, "a decoder", unmasked=True)


def _kept(short: Passed, long: Passed) -> Kept:
    """Per token and pair: bytes = tokens · T + pairs · T² at both lengths, and no less than nothing."""
    blocks, pairs = _fitted(sum(short.blocks), sum(long.blocks))
    rest, _ = _fitted(short.total - sum(short.blocks), long.total - sum(long.blocks))
    largest, _ = _fitted(max(short.blocks, default=0), max(long.blocks, default=0))
    inputs, _ = _fitted(sum(short.inputs), sum(long.inputs))
    selected, _ = _fitted(short.selected, long.selected)
    shared, _ = _fitted(short.shared, long.shared)
    return Kept(blocks, largest, inputs, rest, pairs, selected, shared, count=len(long.blocks))


def _fitted(short: int, long: int) -> tuple[float, float]:
    first, second = LENGTHS
    pairs = max(0.0, (long / second - short / first) / (second - first))
    return short / first - pairs * first, pairs
