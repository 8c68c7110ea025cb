"""Preparing a rank to keep its optimizer states in files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

from shardyard.async_io import missing_for_async_io
from shardyard.engine.mesh import Mesh
from shardyard.engine.offload.folder import SwapFolder
from shardyard.engine.offload.quirks import load_operations
from shardyard.engine.world import ranks_here
from shardyard.errors import HardwareError
from shardyard.planning.plan import RunPlan
from shardyard.recipe.schema import Recipe


def swap_folder(
    recipe: Recipe, plan: RunPlan, mesh: Mesh, report: Callable[[str], None] = lambda text: None
) -> SwapFolder | None:
    """This rank's folder, if it offloads to a disk; all ranks call this.

    Args:
        report: called with a message about folders of earlier ranks that were removed.

    Raises:
        HardwareError: on every rank: one of them lacks the library, the folder or the space.
    """
    if recipe.zero.offload_optimizer != "nvme" or recipe.zero.nvme_path is None:
        return None
    folder, problem = None, ""
    try:
        if (missing := missing_for_async_io()) is not None:
            raise HardwareError(f"zero.offload_optimizer nvme reads and writes with libaio: {missing}")
        folder = SwapFolder(Path(recipe.zero.nvme_path).expanduser())
        folder.require(plan.memory.swapped_bytes, ranks_here())
        if folder.removed:
            report(f"removed {len(folder.removed)} folders that ended ranks had left in {folder.path.parent}")
    except HardwareError as error:
        problem = f"rank {mesh.world.index}: {error}"
    problems = [text for text in mesh.world.gather(problem) if text]
    if problems:
        if folder is not None:
            folder.close()
        raise HardwareError("\n".join(problems))
    load_operations()
    return folder


def in_folder(config: Mapping[str, object], folder: Path) -> dict[str, object]:
    """DeepSpeed's configuration for a rank whose files are in `folder`."""
    zero = cast("dict[str, object]", config["zero_optimization"])
    offload = cast("dict[str, object]", zero["offload_optimizer"])
    return {**config, "zero_optimization": {**zero, "offload_optimizer": {**offload, "nvme_path": str(folder)}}}
