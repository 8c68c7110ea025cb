"""A model that generates under ZeRO-3: whole on every rank where it fits, else gathered anew for each token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import deepspeed
from deepspeed.accelerator import get_accelerator

from shardyard.engine.deepspeed import quirks
from shardyard.engine.mesh import Axis, Mesh
from shardyard.engine.world import ranks_here
from shardyard.units import format_bytes

# Of the free memory of a device, what the weights may take; the rest is for caches and activations.
FREE_SHARE = 0.5


@contextmanager
def ready_to_generate(engine: deepspeed.DeepSpeedEngine, mesh: Mesh) -> Iterator[Axis | None]:
    """Context in which a model generates; all ranks call this. The model must not be trained in it.

    Yields the ranks that take part in each forward pass, so that all make the same number of them; None where a pass is
    a matter of this rank alone.
    """
    if engine.zero_optimization_stage() < 3:
        yield None
    elif fits_whole(engine, mesh):
        with quirks.kept_whole(engine):
            yield None
    else:
        yield mesh.world if mesh.world.size > 1 else None


def fits_whole(engine: deepspeed.DeepSpeedEngine, mesh: Mesh) -> bool:
    """Whether every rank has memory for the whole model, in the precision of the forward pass. All ranks call this."""
    return all(mesh.world.gather(whole_bytes(engine) <= FREE_SHARE * _free_bytes(mesh)))


def whole_bytes(engine: deepspeed.DeepSpeedEngine) -> int:
    """Size of the weights that ZeRO-3 has partitioned."""
    parameters = (one for one in engine.module.parameters() if hasattr(one, "ds_numel"))
    return sum(int(one.ds_numel) * one.element_size() for one in parameters)


def told(engine: deepspeed.DeepSpeedEngine) -> str:
    """What a user should know where the model does not fit."""
    return (
        f"the whole model ({format_bytes(whole_bytes(engine))}) does not fit the free memory of each device, so ZeRO-3 "
        "gathers its weights for every token: texts in training take long"
    )


def _free_bytes(mesh: Mesh) -> float:
    free: int = get_accelerator().available_memory()
    # Ranks on CPUs share the memory of their host.
    return free / ranks_here() if mesh.device.type == "cpu" else free
