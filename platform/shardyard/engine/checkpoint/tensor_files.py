"""Reading torch files as tensors and plain values, without executing code in them.

A pickle may call any function, so a checkpoint from somebody else is a program. torch's restricted unpickler builds
only types that it knows and those listed here. All readers of checkpoints use `read_tensors`.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

from shardyard.engine.deepspeed.quirks import reading_by
from shardyard.errors import CheckpointError

# Types that DeepSpeed stores in addition to tensors and those that torch allows by default: plain containers of numbers
# that run no code when they are created.
ALLOWED: list[Any] = [
    fragment_address,
    LossScaler,
    DynamicLossScaler,
    ZeroStageEnum,
]
_NAMED = re.compile(r"(?:GLOBAL|Unsupported (?:class|global)[: ]*) ?([\w.]+)")


def read_tensors(path: Path | str, *, trust: bool = False, map_location: Any = "cpu", **options: Any) -> Any:
    """The contents of a file that `torch.save` wrote.

    Args:
        trust: read the file with Python's unpickler, which executes code in it.
        options: further arguments of `torch.load`.

    Raises:
        CheckpointError: the file contains more than tensors and plain values, or is not a torch file.
    """
    if trust:
        return torch.load(path, map_location=map_location, weights_only=False, **options)
    try:
        with torch.serialization.safe_globals(ALLOWED):
            return torch.load(path, map_location=map_location, weights_only=True, **options)
    except pickle.UnpicklingError as error:
        raise CheckpointError(refusal(str(path), [_named(str(error))])) from error
    except (RuntimeError, EOFError) as error:
        raise CheckpointError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


def code_in(path: Path) -> list[str]:
    """Names in a file other than tensors and plain values, such as `posix.system`; [] for a safe file.

    Also [] for a file that cannot be inspected, which is left to its reader.
    """
    try:
        with torch.serialization.safe_globals(ALLOWED):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except (ValueError, RuntimeError, EOFError, OSError, pickle.UnpicklingError):
        return []


def refusal(what: str, names: list[str]) -> str:
    """The error message for a rejected file."""
    named = ", ".join(name for name in names if name) or "what is not a tensor"
    return (
        f"{what} holds more than tensors and plain values ({named}): reading it could execute code that its author put "
        "there. If you know who wrote it, add --trust; otherwise leave it alone."
    )


@contextmanager
def only_tensors(*, trust: bool) -> Iterator[None]:
    """Within the context, `torch.load` is `read_tensors`: DeepSpeed's converter would execute code in files."""

    def load(file: Path | str, map_location: Any = None, weights_only: bool | None = None, **options: Any) -> Any:
        with reading_by(plain):
            return read_tensors(file, trust=trust, map_location=map_location, **options)

    plain = torch.load
    with reading_by(load):
        yield


def _named(text: str) -> str:
    found = _NAMED.search(text)
    return found[1] if found else ""
