"""Recognising DeepSpeed's wrappers by private names, because objectives do not import DeepSpeed.

Needed for DeepSpeed 0.19.8; `tests/unit/engine/test_deepspeed_quirks.py` fails if the name no longer exists.
"""

from __future__ import annotations

from torch import nn


def is_parallel_layer(module: nn.Module) -> bool:
    """Whether a module is a mixture of experts that DeepSpeed's AutoEP has distributed over ranks.

    An `isinstance` check would have to import DeepSpeed.
    """
    return bool(getattr(module, "_is_autoep_layer", False))
