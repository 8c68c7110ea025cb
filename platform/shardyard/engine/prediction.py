"""What the plan of a run predicts, recorded when it starts, to be compared with what it measures."""

from __future__ import annotations

from collections.abc import Sequence

from shardyard.planning.forecast.accelerators import by_device
from shardyard.planning.forecast.forecast import forecast
from shardyard.planning.forecast.hardware import Hardware
from shardyard.planning.plan import RunPlan
from shardyard.recipe.schema import Recipe
from shardyard.tracking.run.info import Place, PredictedInfo


def predicted(recipe: Recipe, plan: RunPlan, device: str, places: Sequence[Place]) -> PredictedInfo:
    """The memory of a rank, and on one node of known GPUs the speed.

    Over several nodes the speed depends on a network that is not known here; no rate is known of CPUs.

    Args:
        device: the name of the rank's GPU in PyTorch, or `cpu`.
        places: where the ranks run; empty for the only rank of a process.
    """
    found = PredictedInfo(device_bytes=plan.memory.device_bytes)
    accelerator = by_device(device)
    if accelerator is None or len(places) > 1 or plan.precision not in accelerator.peaks:
        return found
    ranks = plan.world.size
    told = forecast(recipe, plan, Hardware(accelerator, gpus=ranks, per_node=ranks))
    return PredictedInfo(
        device_bytes=plan.memory.device_bytes,
        gpu=accelerator.name,
        tokens_per_second=told.tokens_per_second,
        step_seconds=told.step.seconds,
        mfu=told.mfu,
    )
