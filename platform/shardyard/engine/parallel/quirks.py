"""DeepSpeed's process groups, which it keeps in private names of its module.

Needed for DeepSpeed 0.19.8, which arranges tensor-parallel ranks itself and knows no other axis beside them;
`tests/unit/engine/parallel/test_quirks.py` fails if a newer version takes groups.
"""

from __future__ import annotations

from types import ModuleType
from typing import cast

from deepspeed.utils import groups
from torch import distributed

from shardyard.engine.mesh import Axis, Mesh


def use_groups(mesh: Mesh) -> ModuleType | None:
    """Make DeepSpeed use the groups of the mesh; all ranks call this before it starts.

    Ranks of a sequence are data-parallel ones for DeepSpeed: they hold the same weights.

    Returns:
        What `deepspeed.initialize` takes as `mpu`; None without tensor parallelism.
    """
    groups.mpu = None
    split = mesh.tensor.size > 1
    groups._TENSOR_MODEL_PARALLEL_GROUP = groups._MODEL_PARALLEL_GROUP = mesh.tensor.group if split else None
    groups._DATA_PARALLEL_GROUP = _group(mesh.zero, mesh.world.size) if split else None
    groups._MPU_TENSOR_MODEL_PARALLEL_WORLD_SIZE = groups._MPU_TENSOR_MODEL_PARALLEL_RANK = None
    return cast("ModuleType", groups) if split else None


def _group(axis: Axis, world: int) -> distributed.ProcessGroup:
    """The group of an axis, also of one rank."""
    if axis.group is not None:
        return axis.group
    alone, _ = distributed.new_subgroups_by_enumeration([[rank] for rank in range(world)])  # type: ignore[no-untyped-call]
    return cast("distributed.ProcessGroup", alone)
