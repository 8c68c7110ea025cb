"""Sums over micro-batches and ranks, of losses and observations: in fp64 on the device until the host needs them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, distributed

from shardyard.objectives.base import Measured, Totals


class PendingSum:
    """A sum over all ranks that is on its way."""

    def __init__(self, values: Sequence[float], device: torch.device) -> None:
        self._tensor = torch.tensor(values, dtype=torch.float64, device=device)
        self._work = distributed.all_reduce(self._tensor, async_op=True)

    def on_device(self) -> Tensor:
        """The sums [N] in fp64, one for each value given; the host does not wait for the device."""
        if self._work is not None:
            self._work.wait()
            self._work = None
        return self._tensor

    def wait(self) -> list[float]:
        """The sums, one for each value given."""
        return [float(value) for value in self.on_device().tolist()]


def sum_over_ranks(values: Sequence[float], device: torch.device) -> list[float]:
    """Element-wise sums over all ranks."""
    return PendingSum(values, device).wait()


class Sums:
    """Adds up what passes over micro-batches give on this rank, and then what the ranks have."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._losses: dict[str, Tensor] = {}
        self._observed: dict[str, Tensor] = {}

    def add(self, measured: Measured) -> None:
        """Another micro-batch."""
        for into, values in ((self._losses, measured.losses), (self._observed, measured.observed)):
            for name, value in values.items():
                wide = value.detach().to(self._device, torch.float64)
                into[name] = into[name] + wide if name in into else wide

    def totals(self, counts: Mapping[str, float]) -> Totals:
        """Those of this process alone."""
        losses = {name: float(value) for name, value in self._losses.items()}
        return Totals(losses, Observed(self._observed), counts)

    def over_ranks(self, extras: Sequence[float] = ()) -> RankSums:
        """The sums over all ranks, in one collective, with `extras` summed beside them. All ranks call this."""
        names, observed = sorted(self._losses), sorted(self._observed)
        tensors = [self._losses[name] for name in names] + [self._observed[name] for name in observed]
        if extras:
            tensors.append(torch.tensor(extras, dtype=torch.float64, device=self._device))
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        distributed.all_reduce(flat)
        parts = [
            part.view(tensor.shape)
            for part, tensor in zip(torch.split(flat, [tensor.numel() for tensor in tensors]), tensors, strict=True)
        ]
        return RankSums(
            losses=dict(zip(names, parts, strict=False)),
            observed=dict(zip(observed, parts[len(names) :], strict=False)),
            extras=parts[-1] if extras else flat[:0],
        )


class RankSums:
    """Sums over all ranks, still on the device."""

    def __init__(self, losses: dict[str, Tensor], observed: dict[str, Tensor], extras: Tensor) -> None:
        self._losses, self._observed, self._extras = losses, observed, extras

    def to_host(self, counts: Mapping[str, Tensor | float], *more: Tensor) -> tuple[Totals, list[float], list[float]]:
        """What is small, in one copy; what was observed stays on the device until it is read.

        Args:
            counts: numbers of targets of the whole global batch, for the totals.
            more: scalars that are wanted on the host too.

        Returns:
            The totals, the extras, and `more`.
        """
        device = self._extras.device
        given = [torch.as_tensor(value, dtype=torch.float64, device=device) for value in (*counts.values(), *more)]
        tensors = [*self._losses.values(), *given, self._extras]
        numbers = iter(torch.cat([tensor.detach().reshape(-1) for tensor in tensors]).tolist())
        losses = {name: next(numbers) for name in self._losses}
        counted = {name: next(numbers) for name in counts}
        others = [next(numbers) for _ in more]
        return Totals(losses, Observed(self._observed), counted), list(numbers), others


class Observed(Mapping[str, Tensor]):
    """Observed sums on the CPU, which come from the device when the first of them is read, all in one copy."""

    def __init__(self, on_device: Mapping[str, Tensor]) -> None:
        self._on_device = on_device
        self._here: dict[str, Tensor] | None = None

    def __getitem__(self, name: str) -> Tensor:
        if self._here is None:
            self._here = _to_cpu(self._on_device)
        return self._here[name]

    def __contains__(self, name: object) -> bool:
        return name in self._on_device

    def __iter__(self) -> Iterator[str]:
        return iter(self._on_device)

    def __len__(self) -> int:
        return len(self._on_device)


def _to_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors.values()]).cpu()
    parts = torch.split(flat, [tensor.numel() for tensor in tensors.values()])
    return {name: part.view(tensors[name].shape) for name, part in zip(tensors, parts, strict=True)}
