"""Sharding a model whose weights have not been read: each rank reads its own part of each."""

from __future__ import annotations

from typing import Any

from torch import nn

from shardyard.engine.deepspeed import quirks
from shardyard.models.slices.sources import Sources


def shard(model: nn.Module, sources: Sources, deepspeed_config: dict[str, Any]) -> None:
    """Partition every parameter of a model for ZeRO-3, one at a time; all ranks call this.

    Args:
        model: its parameters have values, or a source.
        sources: emptied.
        deepspeed_config: of stage 3.
    """
    init = quirks.Init(config_dict_or_path=deepspeed_config)
    for parameter in model.parameters():
        init.partition(parameter, sources.of(parameter).part)
        sources.pop(parameter, None)
    # The engine moves no module that is partitioned already.
    for buffer in model.buffers():
        buffer.data = buffer.data.to(init.local_device)
