"""A weight in the files of a checkpoint, which is read when it is needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from shardyard.models.weight_source import on_meta


@dataclass(frozen=True)
class Stored:
    """A weight in files: its shape and precision (meta), and how it is read."""

    like: Tensor
    read: Callable[[], Tensor]


def in_file(tensor: Tensor) -> Stored:
    """A tensor of a file that is mapped into memory."""
    return Stored(on_meta(tensor), lambda: tensor)
