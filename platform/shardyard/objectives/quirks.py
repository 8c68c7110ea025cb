"""Recognising DeepSpeed's wrappers by private names, because objectives do not import DeepSpeed.

Seen in DeepSpeed 0.19.8; `tests/unit/engine/test_deepspeed_quirks.py` fails where the name has gone.
"""

from __future__ import annotations

from torch import nn


def is_parallel_layer(module: nn.Module) -> bool:
    """Whether a module is a mixture whose experts DeepSpeed's AutoEP has spread over ranks.

    DeepSpeed's class cannot be asked for without importing DeepSpeed.
    """
    return bool(getattr(module, "_is_autoep_layer", False))
