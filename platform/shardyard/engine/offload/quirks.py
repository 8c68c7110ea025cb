"""DeepSpeed's optimizer states in files (ZeRO-Infinity), as its ZeRO-3 optimizer and its swapper keep them.

DeepSpeed copies the files beside a checkpoint, for the same ranks only, and loads no other state of the optimizer. Here
the states are in the checkpoint's own files, as of a run without offloading: hashed, and read on any ranks and stage.
"""

from __future__ import annotations

import contextlib
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.checkpoint.constants import FP32_FLAT_GROUPS, OPTIMIZER_STATE_DICT
from deepspeed.ops.op_builder.cpu.async_io import AsyncIOBuilder
from torch import Tensor

from shardyard.engine.offload.folder import SwapFolder
from shardyard.errors import HardwareError
from shardyard.units import format_bytes


def load_operations() -> None:
    """Compile and load the operations on files as DeepSpeed does it without a GPU.

    Its build for GPUs is of the same sources, which call nothing of CUDA, but wants CUDA's toolkit, which a host with
    torch from a wheel seldom has. DeepSpeed takes what has been loaded once in a process.
    """
    AsyncIOBuilder().load(verbose=False)


def swaps(engine: deepspeed.DeepSpeedEngine) -> bool:
    """Whether the optimizer states of an engine are in files."""
    return bool(getattr(engine.optimizer, "swap_optimizer", False))


def keep_in_checkpoints(engine: deepspeed.DeepSpeedEngine, folder: SwapFolder) -> None:
    """Write the states that are in files into checkpoints, piece by piece: nothing is read into memory first.

    Args:
        folder: of the files; it goes with the engine, or with `remove_files`.
    """
    engine.swap_folder = folder
    weakref.finalize(engine, folder.close)
    engine.zero_nvme_offload_optimizer = lambda: False  # copies no files
    optimizer = engine.optimizer
    _check_writes(optimizer.optimizer_swapper)
    plain = optimizer.state_dict
    optimizer.state_dict = lambda: _with_files(optimizer, plain())


def _check_writes(swapper: Any) -> None:
    """Stop a run whose files are short: DeepSpeed 0.19.8 counts a write as done although the disk is full.

    Files keep their sizes from the first step on, so that later writes need no further space.
    """
    plain = swapper.swap_out_optimizer_state

    def swap_out(parameter: Tensor, async_swap: bool = False) -> None:
        plain(parameter=parameter, async_swap=async_swap)
        info = swapper.swap_params_info[parameter.ds_id]  # type: ignore[attr-defined]
        sizes = {path: info.numel() for path in info.get_swap_paths()}
        sizes |= {one.path: one.length for one in info.swapped_gradients.values()}
        for path, count in sizes.items():
            if Path(path).stat().st_size < 4 * count:
                folder = Path(path).parent
                free = format_bytes(shutil.disk_usage(folder).free)
                raise HardwareError(
                    f"{path} is shorter than what was written: the disk of zero.nvme_path is full ({free} free); free "
                    "some space or choose another disk, and resume the run from its last checkpoint"
                )

    swapper.swap_out_optimizer_state = swap_out


def remove_files(engine: deepspeed.DeepSpeedEngine) -> None:
    """Remove the files of an engine that takes no further step."""
    if swaps(engine):
        engine.swap_folder.close()


def _with_files(optimizer: Any, state: Any) -> Any:
    weights = list(state[FP32_FLAT_GROUPS])
    inner = state[OPTIMIZER_STATE_DICT]
    states = dict(inner["state"])
    for number, owner in enumerate(weights):
        if not optimizer._swappable_optimizer_subgroup(number):
            continue
        info = optimizer.optimizer_swapper.swap_params_info[owner.ds_id]
        # First the weights, then the states.
        first, *others = (_mapped(one.swap_path, info.numel()) for one in info.tensors)
        weights[number] = first
        names = [key for key, value in states.get(number, {}).items() if isinstance(value, Tensor)]
        assert len(names) == len(others), "each state of a swapped weight has a file"
        by_path = {one.compute_tensor.ds_id: value for one, value in zip(info.tensors[1:], others, strict=True)}
        if number in states:
            own = {name: by_path[f"{name}-{owner.ds_id}"] for name in names}
            states[number] = {**states[number], **own}
    return {**state, FP32_FLAT_GROUPS: weights, OPTIMIZER_STATE_DICT: {**inner, "state": states}}


def _mapped(path: str, count: int) -> Tensor:
    """The numbers of a file, which the kernel reads when they are used; changes stay in memory."""
    return torch.from_file(path, shared=False, size=count, dtype=torch.float32)


@contextlib.contextmanager
def opened(engine: deepspeed.DeepSpeedEngine, number: int) -> Iterator[Tensor]:
    """The fp32 weights of a sub-group of ZeRO-3, in memory with their states; what is changed goes into the files."""
    optimizer = engine.optimizer
    swapped = swaps(engine) and optimizer._swappable_optimizer_subgroup(number)
    if swapped:
        optimizer._optimizer_states_and_gradient_swap_in(number)
    try:
        yield optimizer.fp32_partitioned_groups_flat[number]
    finally:
        if swapped:
            optimizer._optimizer_states_and_gradient_swap_out(number)
