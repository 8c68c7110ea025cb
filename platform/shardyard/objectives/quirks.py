"""What objectives read of models under private names of transformers and DeepSpeed, which have no public ones.

Seen in transformers 5.22 and DeepSpeed 0.19.8; `tests/unit/objectives/test_quirks.py` fails where a name has gone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from torch import nn


def attention_of(model: Any) -> str:
    """Which implementation of attention a model computes with, such as `sdpa`; "" where it does not say."""
    config = getattr(getattr(model, "module", model), "config", None)
    return str(getattr(config, "_attn_implementation", ""))


def is_parallel_layer(module: nn.Module) -> bool:
    """Whether a module is a mixture whose experts DeepSpeed's AutoEP has spread over ranks.

    DeepSpeed's class cannot be asked for without importing DeepSpeed.
    """
    return bool(getattr(module, "_is_autoep_layer", False))


def recorded_routers(module: nn.Module) -> Iterator[tuple[type, int]]:
    """The classes of routers that a model of transformers names, each with the place of its logits in its output."""
    recorded = getattr(type(module), "_can_record_outputs", None) or {}
    entries = recorded.get("router_logits", []) if isinstance(recorded, dict) else []
    for entry in entries if isinstance(entries, list) else [entries]:
        yield cast(type, getattr(entry, "target_class", entry)), int(getattr(entry, "index", 1))
