"""Offloading: what DeepSpeed can keep out of the memory of devices, and which combinations are tested."""

from __future__ import annotations

from collections.abc import Iterator

from shardyard.recipe.fields import Path
from shardyard.recipe.schema import Recipe

_CPU_OPTIMIZERS = ("adamw", "adam", "adagrad", "lion")
_SWAPPED_OPTIMIZERS = ("adamw", "adam")
_OPTIMIZER: Path = ("zero", "offload_optimizer")
_PARAMETERS: Path = ("zero", "offload_parameters")


def offload_rules(recipe: Recipe) -> Iterator[tuple[Path, str]]:
    """What a recipe cannot offload, and why."""
    zero, name = recipe.zero, recipe.optimizer.name
    if zero.offload_optimizer and zero.stage < 1:
        yield _OPTIMIZER, "needs ZeRO stage 1, 2 or 3; set zero.stage"
    if zero.offload_parameters and zero.stage != 3:
        yield _PARAMETERS, f"needs ZeRO stage 3, not {zero.stage}; set zero.stage to 3"
    if zero.offload_parameters == "nvme":
        why = "its parts of weights would lie in files only, where checks, exports and new starts do not find them"
        yield _PARAMETERS, f"nvme is not supported: {why}; use cpu, and nvme for zero.offload_optimizer"
    if zero.offload_optimizer and name not in _CPU_OPTIMIZERS:
        yield (
            _OPTIMIZER,
            f"DeepSpeed has no CPU kernel for {name}; use one of {', '.join(_CPU_OPTIMIZERS)}, or set it to false",
        )
    if zero.offload_optimizer == "nvme":
        yield from _nvme(recipe)
    elif zero.nvme_path is not None:
        yield ("zero", "nvme_path"), "has no effect without zero.offload_optimizer nvme; remove it"
    if zero.sub_group_size is not None and zero.stage != 3:
        yield ("zero", "sub_group_size"), f"has no effect at ZeRO stage {zero.stage}; remove it"
    if zero.pin_memory is not None and not (zero.offload_optimizer or zero.offload_parameters):
        yield ("zero", "pin_memory"), "has no effect without offloading; remove it"


def _nvme(recipe: Recipe) -> Iterator[tuple[Path, str]]:
    zero, name = recipe.zero, recipe.optimizer.name
    if zero.stage in (1, 2):
        why = f"nvme needs ZeRO stage 3, not {zero.stage}: DeepSpeed swaps nothing at others"
        yield _OPTIMIZER, f"{why}; set zero.stage to 3, or this to cpu"
    if zero.nvme_path is None:
        yield _OPTIMIZER, "nvme needs a folder on a local disk of every host; set zero.nvme_path"
    if name in _CPU_OPTIMIZERS and name not in _SWAPPED_OPTIMIZERS:
        yield _OPTIMIZER, f"nvme is tested with {' and '.join(_SWAPPED_OPTIMIZERS)}, not with {name}; use one, or cpu"
    if recipe.train.precision == "fp16":
        yield _OPTIMIZER, "nvme takes bf16 and fp32, not fp16; set train.precision to bf16, or this to cpu"
    if recipe.checkpoint.background:
        why = "would copy to host memory what nvme keeps out of it"
        yield ("checkpoint", "background"), f"{why} (zero.offload_optimizer); set it to false"
    if recipe.model.adapter is not None:
        yield _OPTIMIZER, "nvme is not tested with adapters, whose optimizer states are small; set it to cpu or false"
    if zero.hpz_partition_size > 1:
        yield ("zero", "hpz_partition_size"), "is not tested with zero.offload_optimizer nvme; set it to 1"
