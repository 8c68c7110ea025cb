"""Weights in the files of ZeRO-3, in which each rank has a part of every parameter: read one parameter at a time.

A rank's fp32 parts lie one after the other in flat tensors, in the order of the parameters; parameters that are not
trained have parts by name.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

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

from shardyard.engine.checkpoint.pieces import Pieces, spans
from shardyard.engine.checkpoint.shards import Shards
from shardyard.engine.checkpoint.stored import Stored, in_file
from shardyard.errors import CheckpointError


def partitioned_weights(
    shards: Shards,
    precision: torch.dtype,
    *,
    tensor: int = 0,
    experts: int = 1,
    is_spread: Callable[[str], bool] = lambda name: False,
) -> dict[str, Stored]:
    """The weights of a checkpoint of stage 3 by name.

    Args:
        precision: of trained weights; others keep their own.
        tensor: index of the tensor-parallel rank whose part of split layers is meant.
        experts: ranks that share the experts of a layer. Consecutive ranks hold consecutive experts, and each group of
            ranks that hold the same ones partitions them for itself.
        is_spread: whether a weight of that name is stacked experts [E/experts, …], which become [E, …].

    Raises:
        CheckpointError: files of ranks are missing.
    """
    names = f"*zero_pp_rank_*_mp_rank_{tensor:02d}"
    states = shards.by_rank(f"{names}_model_states.pt")
    optimizers = shards.by_rank(f"{names}_optim_states.pt")
    flat = [one[OPTIMIZER_STATE_DICT][FP32_FLAT_GROUPS] for one in optimizers]
    if len(states) != len(flat):
        raise CheckpointError(
            f"{shards.folder} has model states of {len(states)} ranks and optimizer states of {len(flat)}; copy the "
            "checkpoint again"
        )
    first = states[0]
    found = {name: in_file(first["module"][name]) for name in first[BUFFER_NAMES]}
    for name, shape in (first.get(FROZEN_PARAM_SHAPES) or {}).items():
        held = [[one[FROZEN_PARAM_FRAGMENTS][name]] for one in states]
        found[name] = _whole(held, shape, held[0][0].dtype, experts if is_spread(name) else 1)
    begin = 0
    for name, sizes in itertools.chain.from_iterable(group.items() for group in first[PARAM_SHAPES]):
        shape = torch.Size(sizes)  # AutoEP's are plain tuples.
        spread = experts if is_spread(name) else 1
        share = -(-shape.numel() // (len(flat) // spread))
        held = [[groups[number][cut] for number, cut in spans(groups, begin, share)] for groups in flat]
        found[name] = _whole(held, shape, precision, spread)
        begin += share
    aliases: Mapping[str, str] = first["shared_params"]
    return found | {alias: found[name] for alias, name in aliases.items() if name in found}


def _whole(held: Sequence[Sequence[Tensor]], shape: torch.Size, precision: torch.dtype, spread: int) -> Stored:
    """A weight from what each rank holds of it.

    Args:
        shape: of what `1 / spread` of the ranks hold together: every `spread`-th one, beginning with each of the first.
    """
    pieces = [Pieces([part for one in held[first::spread] for part in one], shape.numel()) for first in range(spread)]
    like = torch.empty((shape[0] * spread, *shape[1:]) if spread > 1 else shape, dtype=precision, device="meta")
    if spread == 1:
        return _stored(pieces[0], like)
    return Stored(like, lambda: torch.cat([one.read(0, one.size, precision) for one in pieces]).view(like.shape))


def _stored(pieces: Pieces, like: Tensor) -> Stored:
    return Stored(like, lambda: pieces.read(0, pieces.size, like.dtype).view(like.shape))
