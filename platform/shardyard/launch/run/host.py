"""Checks of a recipe against the devices of this host, for a run that will train here.

`validate` makes none of them: its result is the same on every host.
"""

from __future__ import annotations

from collections.abc import Iterator

from shardyard import hardware
from shardyard.async_io import missing_for_async_io
from shardyard.errors import Problem, RecipeError
from shardyard.extras import install_command, missing
from shardyard.recipe.rules.rules import NO_FLASH_ON_CPU
from shardyard.recipe.schema import Recipe
from shardyard.recipe.sections.eight_bits import EIGHT_BITS, NO_PAGES_ON_CPU, PAGED


def refuse_on_this_host(recipe: Recipe, *, gpu: bool, source: str = "plan") -> None:
    """Check that the devices of this host support the recipe.

    Args:
        gpu: whether ranks compute on GPUs.
        source: the name of the recipe in messages, such as its file.

    Raises:
        RecipeError: they do not.
    """
    problems = [] if gpu else list(_on_cpu(recipe))
    if recipe.zero.offload_optimizer == "nvme" and (lacking := missing_for_async_io()) is not None:
        problems.append(Problem("", "zero.offload_optimizer", f"nvme reads and writes with libaio: {lacking}"))
    name = recipe.optimizer.name
    if name in EIGHT_BITS and missing("bitsandbytes"):
        how = install_command("quantize")
        problems.append(Problem("", "optimizer.name", f"{name} needs bitsandbytes, which is not installed: `{how}`"))
    if problems:
        raise RecipeError(source, problems)


def _on_cpu(recipe: Recipe) -> Iterator[Problem]:
    if recipe.train.precision == "fp16" and hardware.computes_fp16(hardware.read_cpuinfo()) is False:
        message = "fp16 would run on the CPU here, which has no fp16 arithmetic; use bf16 or fp32, or a GPU"
        yield Problem("", "train.precision", message)
    if recipe.model.attention == "flash_attention_2":
        yield Problem("", "model.attention", NO_FLASH_ON_CPU)
    if recipe.optimizer.name in PAGED:
        yield Problem("", "optimizer.name", NO_PAGES_ON_CPU)
