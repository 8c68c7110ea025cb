"""Reading the weights of a model: each rank its own part of each, or all of them."""

from __future__ import annotations

import deepspeed
import torch
from torch import nn

from shardyard import freed_memory
from shardyard.engine.deepspeed import quirks
from shardyard.models.slices.sources import Sources
from shardyard.planning.plan import RunPlan


def shard(model: nn.Module, sources: Sources, plan: RunPlan) -> None:
    """Partition every parameter of a model for ZeRO-3, one at a time; all ranks call this.

    Args:
        model: its parameters have values, or a source.
        sources: emptied.
        plan: of stage 3.
    """
    init = quirks.Init(config_dict_or_path=plan.deepspeed)
    for parameter in model.parameters():
        init.partition(parameter, sources.of(parameter).part)
        sources.pop(parameter, None)
    # The engine moves no module that is partitioned already.
    for buffer in model.buffers():
        buffer.data = buffer.data.to(init.local_device)


def fill(model: nn.Module, sources: Sources, dtype: torch.dtype) -> None:
    """Read all weights of a model on this rank, in the precision to which the engine would round them."""
    for parameter in model.parameters():
        sources.fill(parameter, dtype)


def start_frozen(plan: RunPlan, model: nn.Module, sources: Sources) -> nn.Module:
    """A frozen model in an engine without optimizer (ZeRO-3 inference), which gathers a layer while it computes.

    All ranks call this, and then the model, the same number of times.

    Args:
        plan: of stage 3.
        model: without gradients, in evaluation mode.
        sources: of the values of its parameters; emptied.
    """
    own = {name: value for name, value in plan.deepspeed.items() if name not in ("optimizer", "expert_parallel")}
    with freed_memory.returned():
        shard(model, sources, plan)
        engine, _, _, _ = deepspeed.initialize(model=model, config=own, dist_init_required=False)
    engine.eval()
    frozen: nn.Module = engine
    return frozen
