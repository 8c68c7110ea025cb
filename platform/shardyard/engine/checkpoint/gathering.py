"""A parameter that ZeRO-3 has partitioned, whole on one rank: the others only send their part of it.

DeepSpeed's own gathering makes it whole on every rank, and twice, because gloo receives in a buffer of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from torch import Tensor, distributed

# What a keeper holds of a weight that it gets in parts.
PART_BYTES = 16 << 20


def can_be_sent(parameter: Any) -> bool:
    """Whether ranks can send their parts of a parameter: not where these are on disk, quantised, or on another device
    than the process group's."""
    part = getattr(parameter, "ds_tensor", None)
    if part is None or getattr(part, "ds_quant_scale", None) is not None:
        return False
    here = parameter.ds_status is ZeroParamStatus.AVAILABLE
    return here or (part.final_location is None and part.device == parameter.device)


def sent(parameter: Any, keepers: Collection[int], rank: int) -> Tensor | None:
    """A copy of the whole parameter on the CPU of each keeper, None elsewhere. All ranks call this.

    Args:
        keepers: numbers of ranks in the world. In a process group without a keeper nothing is sent.
        rank: the number of this rank.
    """
    if parameter.ds_status is ZeroParamStatus.AVAILABLE:
        return parameter.detach().to("cpu", copy=True) if rank in keepers else None
    members = distributed.get_process_group_ranks(parameter.ds_process_group)
    found = None
    for keeper in sorted(keeper for keeper in keepers if keeper in members):
        received = _sent(parameter.ds_tensor.detach().view(-1), members, keeper, parameter.ds_process_group, rank)
        if received is not None:
            # The last part is filled up to the size of the others.
            found = received[: parameter.ds_numel].view(parameter.ds_shape)
    return found


def can_be_sent_in_parts(parameter: Any) -> bool:
    """Whether `sent_in_parts` works: for parts on the CPU, over gloo. NCCL would make a communicator of each pair."""
    partitioned = can_be_sent(parameter) and parameter.ds_status is not ZeroParamStatus.AVAILABLE
    return partitioned and parameter.ds_tensor.device.type == "cpu"


def sent_in_parts(parameter: Any, keepers: Collection[int], rank: int) -> Iterator[tuple[int, Tensor | None]]:
    """The whole parameter piece by piece, of at most `PART_BYTES`; all ranks go through this together.

    Args:
        keepers, rank: as for `sent`.

    Yields:
        Where a piece begins in the flat parameter, and its numbers on the CPU of a keeper; None elsewhere.
    """
    members = distributed.get_process_group_ranks(parameter.ds_process_group)
    receivers = [keeper for keeper in sorted(keepers) if keeper in members]
    held = parameter.ds_tensor.detach().view(-1)
    at_once = max(1, PART_BYTES // held.element_size())
    for index, member in enumerate(members):
        begin = index * held.numel()
        # The last part is filled up to the size of the others.
        for first in range(0, max(0, min(held.numel(), parameter.ds_numel - begin)), at_once):
            size = min(at_once, held.numel() - first, parameter.ds_numel - begin - first)
            piece = _passed(held[first : first + size], member, receivers, parameter.ds_process_group, rank)
            yield begin + first, piece


def _passed(own: Tensor, member: int, receivers: list[int], group: Any, rank: int) -> Tensor | None:
    """`own` of one rank on those that receive it."""
    if rank == member:
        for receiver in receivers:
            if receiver != rank:
                distributed.send(own, receiver, group=group)
        return own if rank in receivers else None
    if rank not in receivers:
        return None
    found = torch.empty_like(own)
    distributed.recv(found, src=member, group=group)
    return found


def _sent(part: Tensor, members: list[int], keeper: int, group: Any, rank: int) -> Tensor | None:
    size = part.numel()
    if part.device.type != "cpu":
        whole = part.new_empty(size * len(members)) if rank == keeper else None
        into = None if whole is None else _cut(whole, size)
        distributed.gather(part, into, dst=keeper, group=group)
        return None if whole is None else whole.cpu()
    if rank != keeper:
        distributed.send(part, keeper, group=group)
        return None
    # gloo's gather would receive in a buffer of its own first; this receives in place.
    found = torch.empty(size * len(members), dtype=part.dtype)
    others = list(zip(members, _cut(found, size), strict=True))
    found[members.index(rank) * size :][:size] = part
    for work in [distributed.irecv(into, src=other, group=group) for other, into in others if other != rank]:
        assert work is not None, "this rank belongs to the group"
        work.wait()
    return found


def _cut(whole: Tensor, size: int) -> list[Tensor]:
    return [whole[begin : begin + size] for begin in range(0, whole.numel(), size)]
