"""Sums over micro-batches and ranks, of losses and observations: in fp64 on the device until the host needs them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shardyard.engine.mesh import Mesh
from shardyard.engine.transfer import Arriving, numbers_on
from shardyard.objectives.base import Measured, Totals


class PendingSum:
    """An asynchronous sum over the ranks that compute different tokens."""

    def __init__(self, values: Sequence[float], mesh: Mesh) -> None:
        self._tensor = numbers_on(mesh.device, values)
        self._work = mesh.zero.start_sum(self._tensor)

    def on_device(self) -> Tensor:
        """The sums [N] in fp64, one for each given value; the host does not wait for the device."""
        if self._work is not None:
            self._work.wait()
            self._work = None
        return self._tensor

    def wait(self) -> list[float]:
        """The sums, one for each given value."""
        return [float(value) for value in self.on_device().tolist()]


def sum_over_ranks(values: Sequence[float], mesh: Mesh) -> list[float]:
    """Element-wise sums over the ranks that compute different tokens."""
    return PendingSum(values, mesh).wait()


class Sums:
    """Sums the results of this rank's micro-batches, and then the sums of all ranks."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._losses: dict[str, Tensor] = {}
        self._observed: dict[str, Tensor] = {}

    def add(self, measured: Measured) -> None:
        """Add the result of a micro-batch."""
        for into, values in ((self._losses, measured.losses), (self._observed, measured.observed)):
            for name, value in values.items():
                wide = value.detach().to(self._device, torch.float64)
                into[name] = into[name] + wide if name in into else wide

    def over_ranks(self, mesh: Mesh, extras: Sequence[float] = ()) -> RankSums:
        """The sums over the ranks that compute different tokens; others compute the same ones.

        `extras` are summed over all ranks, in the same collective if all compute different tokens. All ranks call this.
        """
        names, observed = sorted(self._losses), sorted(self._observed)
        tensors = [self._losses[name] for name in names] + [self._observed[name] for name in observed]
        tensors.append(numbers_on(self._device, extras))
        sizes = [tensor.numel() for tensor in tensors]
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        if mesh.zero.size == mesh.world.size:
            mesh.zero.sum(flat)
        else:
            if tensors[:-1]:
                mesh.zero.sum(flat[: sum(sizes[:-1])])
            mesh.world.sum(flat[sum(sizes[:-1]) :])
        parts = [part.view(tensor.shape) for part, tensor in zip(torch.split(flat, sizes), tensors, strict=True)]
        return RankSums(
            losses=dict(zip(names, parts, strict=False)),
            observed=dict(zip(observed, parts[len(names) :], strict=False)),
            extras=parts[-1],
            device=self._device,
        )


class RankSums:
    """Sums over ranks, still on the device."""

    def __init__(
        self, losses: dict[str, Tensor], observed: dict[str, Tensor], extras: Tensor, device: torch.device
    ) -> None:
        self._losses, self._observed, self._extras, self._device = losses, observed, extras, device

    def leave(
        self, counts: Mapping[str, Tensor | float], *more: Tensor | float, observed: bool = False
    ) -> ArrivingSums:
        """Start copying the numbers to the host, all together; the host does not wait for the device.

        Args:
            counts: numbers of targets of the whole global batch, for the totals.
            more: further scalars to copy to the host.
            observed: copy observations too; otherwise they stay on the device until they are read.
        """
        scalars = [*counts.values(), *more]
        seen = list(self._observed.values()) if observed else []
        tensors = [*self._losses.values(), *(one for one in scalars if isinstance(one, Tensor)), *seen, self._extras]
        flat = torch.cat([tensor.detach().reshape(-1).to(torch.float64) for tensor in tensors])
        return ArrivingSums(
            Arriving(flat, self._device), tuple(self._losses), dict(counts), more, self._observed, len(seen) > 0
        )

    def to_host(
        self, counts: Mapping[str, Tensor | float], *more: Tensor | float
    ) -> tuple[Totals, list[float], list[float]]:
        """The totals, the extras, and `more` on the host, which waits for the device; arguments as for `leave`."""
        return self.leave(counts, *more).read()


@dataclass(frozen=True)
class ArrivingSums:
    """Sums on their way to the host: what `RankSums.leave` started to copy."""

    numbers: Arriving
    losses: tuple[str, ...]
    counts: Mapping[str, Tensor | float]
    more: tuple[Tensor | float, ...]
    observed: Mapping[str, Tensor]
    with_observed: bool

    def read(self) -> tuple[Totals, list[float], list[float]]:
        """The totals, the extras, and `more`; waits until the copy has arrived."""
        here = self.numbers.read()
        numbers = iter(here.tolist())
        losses = {name: next(numbers) for name in self.losses}
        counted, others = (
            [next(numbers) if isinstance(one, Tensor) else one for one in given]
            for given in (self.counts.values(), self.more)
        )
        found: Mapping[str, Tensor] = Observed(self.observed)
        if self.with_observed:
            begin = len(losses) + sum(isinstance(one, Tensor) for one in (*self.counts.values(), *self.more))
            found = split_as(here[begin:], self.observed)
            for _ in range(sum(tensor.numel() for tensor in found.values())):
                next(numbers)
        return Totals(losses, found, dict(zip(self.counts, counted, strict=True))), list(numbers), others


class Observed(Mapping[str, Tensor]):
    """Observed sums on the CPU; the first read copies all of them from the device together."""

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
    return split_as(torch.cat([tensor.reshape(-1) for tensor in tensors.values()]).cpu(), tensors)


def split_as(flat: Tensor, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The first numbers of a flat tensor in the shapes of the given tensors, which were concatenated to it."""
    sizes = [tensor.numel() for tensor in tensors.values()]
    parts = torch.split(flat[: sum(sizes)], sizes)
    return {name: part.view(tensors[name].shape) for name, part in zip(tensors, parts, strict=True)}
