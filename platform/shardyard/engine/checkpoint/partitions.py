"""Weights in the files of ZeRO-3, in which each rank has a part of every parameter: read one parameter at a time.

A rank's fp32 parts lie one after the other in flat tensors, in the order of the parameters; parameters that are not
trained have parts by name.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from deepspeed.checkpoint.constants import (
    BUFFER_NAMES,
    FP32_FLAT_GROUPS,
    FROZEN_PARAM_FRAGMENTS,
    FROZEN_PARAM_SHAPES,
    OPTIMIZER_STATE_DICT,
    PARAM_SHAPES,
)
from torch import Tensor

from shardyard.engine.checkpoint.pieces import Pieces, by_rank, spans
from shardyard.engine.checkpoint.stored import Stored, in_file
from shardyard.errors import CheckpointError


def partitioned_weights(engine_folder: Path, precision: torch.dtype, read: Callable[[Path], Any]) -> dict[str, Stored]:
    """The weights of a checkpoint of stage 3 by name.

    Args:
        precision: of trained weights; others keep their own.
        read: maps a file of torch into memory.

    Raises:
        CheckpointError: files of ranks are missing.
    """
    states = by_rank(engine_folder, "*_model_states.pt", read)
    flat = [one[OPTIMIZER_STATE_DICT][FP32_FLAT_GROUPS] for one in by_rank(engine_folder, "*_optim_states.pt", read)]
    if len(states) != len(flat):
        raise CheckpointError(
            f"{engine_folder} has model states of {len(states)} ranks and optimizer states of {len(flat)}; copy the "
            "checkpoint again"
        )
    first = states[0]
    found = {name: in_file(first["module"][name]) for name in first[BUFFER_NAMES]}
    for name, shape in (first.get(FROZEN_PARAM_SHAPES) or {}).items():
        parts = [one[FROZEN_PARAM_FRAGMENTS][name] for one in states]
        found[name] = _stored(Pieces(parts, shape.numel()), torch.empty(shape, dtype=parts[0].dtype, device="meta"))
    begin = 0
    for name, shape in itertools.chain.from_iterable(group.items() for group in first[PARAM_SHAPES]):
        share = -(-shape.numel() // len(flat))
        parts = [groups[number][cut] for groups in flat for number, cut in spans(groups, begin, share)]
        found[name] = _stored(Pieces(parts, shape.numel()), torch.empty(shape, dtype=precision, device="meta"))
        begin += share
    aliases: Mapping[str, str] = first["shared_params"]
    return found | {alias: found[name] for alias, name in aliases.items() if name in found}


def _stored(pieces: Pieces, like: Tensor) -> Stored:
    return Stored(like, lambda: pieces.read(0, pieces.size).to(like.dtype).view(like.shape))
