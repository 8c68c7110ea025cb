"""Weights in the files of ZeRO-3, in which each rank has a part of every parameter: read one parameter at a time.

A rank's fp32 parts lie one after the other in flat tensors, in the order of the parameters; parameters that are not
trained have parts by name.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
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

from shardyard.engine.checkpoint.stored import Stored, in_file
from shardyard.errors import CheckpointError

_RANK = re.compile(r"zero_pp_rank_(\d+)_mp_rank_")


def partitioned_weights(engine_folder: Path, precision: torch.dtype, read: Callable[[Path], Any]) -> dict[str, Stored]:
    """The weights of a checkpoint of stage 3 by name.

    Args:
        precision: of trained weights; others keep their own.
        read: maps a file of torch into memory.

    Raises:
        CheckpointError: files of ranks are missing.
    """
    states = _by_rank(engine_folder, "*_model_states.pt", read)
    flat = [one[OPTIMIZER_STATE_DICT][FP32_FLAT_GROUPS] for one in _by_rank(engine_folder, "*_optim_states.pt", read)]
    if not states or len(states) != len(flat):
        raise CheckpointError(
            f"{engine_folder} has model states of {len(states)} ranks and optimizer states of {len(flat)}; copy the "
            "checkpoint again"
        )
    first = states[0]
    found = {name: in_file(first["module"][name]) for name in first[BUFFER_NAMES]}
    for name, shape in (first.get(FROZEN_PARAM_SHAPES) or {}).items():
        parts = [one[FROZEN_PARAM_FRAGMENTS][name] for one in states]
        like = torch.empty(shape, dtype=parts[0].dtype, device="meta")
        found[name] = Stored(like, partial(_joined, parts, like))
    begin = 0
    for name, shape in itertools.chain.from_iterable(group.items() for group in first[PARAM_SHAPES]):
        like = torch.empty(shape, dtype=precision, device="meta")
        part = -(-like.numel() // len(flat))
        found[name] = Stored(like, partial(_from_flat, flat, begin, part, like))
        begin += part
    aliases: Mapping[str, str] = first["shared_params"]
    return found | {alias: found[name] for alias, name in aliases.items() if name in found}


def _by_rank(folder: Path, pattern: str, read: Callable[[Path], Any]) -> list[Any]:
    paths = {int(match[1]): path for path in folder.glob(pattern) if (match := _RANK.search(path.name))}
    return [read(paths[rank]) for rank in sorted(paths)]


def _joined(parts: Sequence[Tensor], like: Tensor) -> Tensor:
    """A parameter from its parts, the last of which may be filled up."""
    return torch.cat([part.flatten() for part in parts])[: like.numel()].view(like.shape)


def _from_flat(flat: Sequence[Sequence[Tensor]], begin: int, size: int, like: Tensor) -> Tensor:
    """A parameter from the flat tensors of each rank, of which it takes `size` values from `begin` on."""
    result = torch.empty(like.numel(), dtype=like.dtype)
    at = 0
    for groups in flat:
        left, offset, start = size, begin, 0
        for group in groups:
            skipped = max(0, offset - start)
            taken = group[skipped : skipped + left] if skipped < group.numel() else group[:0]
            # What fills the last part up is left out.
            kept = taken[: max(0, result.numel() - at)]
            result[at : at + kept.numel()] = kept
            at += kept.numel()
            left, offset, start = left - taken.numel(), offset + taken.numel(), start + group.numel()
            if not left:
                break
    return result.view(like.shape)
