"""What almost every rank of a test imports: done once, in the process that ranks are forked from."""

from __future__ import annotations

from shardyard.imports import import_at_once

import_at_once(
    "shardyard.engine.run",
    "support.tiny",
    "pytest",
    # What a first run imports when it starts: 0.2 s of each rank.
    "shardyard.data.formats.packed",
    "shardyard.models.isolation",
    "shardyard.objectives.causal_lm.loss",
    "shardyard.objectives.scores",
    "transformers.generation.utils",
    "transformers.models.gpt2.modeling_gpt2",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.runtime.superoffload.superoffload_stage3",
    "deepspeed.runtime.zero.muon.muon_optimizer",
)
