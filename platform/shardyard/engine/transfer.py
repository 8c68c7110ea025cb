"""Copies between host and device for which the host does not wait: numbers, and the micro-batches of a step."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from shardyard.data.stream.rows import Tensors


def numbers_on(device: torch.device, values: Sequence[float]) -> Tensor:
    """The values [N] in fp64 on the device. A copy from memory that is not pinned would wait for the device."""
    numbers = torch.tensor(values, dtype=torch.float64)
    if device.type == "cuda":
        return numbers.pin_memory().to(device, non_blocking=True)
    return numbers.to(device)


class Arriving:
    """A tensor on its way from the device to the host."""

    def __init__(self, tensor: Tensor, device: torch.device) -> None:
        self._here, self._arrived = tensor, None
        if device.type == "cuda":
            self._here = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._here.copy_(tensor, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def read(self) -> Tensor:
        """The tensor on the host; waits for the device up to this copy, and not for later work."""
        if self._arrived is not None:
            self._arrived.synchronize()
            self._arrived = None
        return self._here


class Copies:
    """Micro-batches on the device, copied one ahead of their use; on GPUs on a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def of(self, micro_batches: Sequence[Tensors]) -> Iterator[Tensors]:
        """Each micro-batch in its order. The host must have it in pinned memory, or each copy waits for the device."""
        ahead: deque[tuple[Tensors, torch.cuda.Event | None]] = deque()
        for part in micro_batches:
            ahead.append(self._start(part))
            if len(ahead) > 1:
                yield self._arrived(*ahead.popleft())
        if ahead:
            yield self._arrived(*ahead.popleft())

    def _start(self, tensors: Tensors) -> tuple[Tensors, torch.cuda.Event | None]:
        if self._stream is None:
            return {name: tensor.to(self._device) for name, tensor in tensors.items()}, None
        with torch.cuda.stream(self._stream):
            copied = {name: tensor.to(self._device, non_blocking=True) for name, tensor in tensors.items()}
            return copied, self._stream.record_event()

    def _arrived(self, tensors: Tensors, event: torch.cuda.Event | None) -> Tensors:
        """The computing stream, not the host, waits for the copy."""
        if event is not None:
            computing = torch.cuda.current_stream(self._device)
            computing.wait_event(event)
            for tensor in tensors.values():
                # The allocator would otherwise give the memory to the next copy while it is still read.
                tensor.record_stream(computing)
        return tensors
