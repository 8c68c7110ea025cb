"""Sums over micro-batches and ranks, of losses and observations: in fp64 on the device until the host needs them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from shardyard.engine.mesh import Mesh
from shardyard.objectives.base import Measured, Totals


class PendingSum:
    """An asynchronous sum over the data-parallel ranks."""

    def __init__(self, values: Sequence[float], mesh: Mesh) -> None:
        self._tensor = torch.tensor(values, dtype=torch.float64, device=mesh.device)
        self._work = mesh.data.start_sum(self._tensor)

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
    """Element-wise sums over the data-parallel ranks."""
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
        """The sums over the data-parallel ranks only, because other ranks read the same rows.

        `extras` are summed over all ranks, in the same collective if all ranks are data-parallel. All ranks call this.
        """
        names, observed = sorted(self._losses), sorted(self._observed)
        tensors = [self._losses[name] for name in names] + [self._observed[name] for name in observed]
        tensors.append(torch.tensor(extras, dtype=torch.float64, device=self._device))
        sizes = [tensor.numel() for tensor in tensors]
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        if mesh.data.size == mesh.world.size:
            mesh.data.sum(flat)
        else:
            mesh.data.sum(flat[: sum(sizes[:-1])])
            mesh.world.sum(flat[sum(sizes[:-1]) :])
        parts = [part.view(tensor.shape) for part, tensor in zip(torch.split(flat, sizes), tensors, strict=True)]
        return RankSums(
            losses=dict(zip(names, parts, strict=False)),
            observed=dict(zip(observed, parts[len(names) :], strict=False)),
            extras=parts[-1],
        )


class RankSums:
    """Sums over ranks, still on the device."""

    def __init__(self, losses: dict[str, Tensor], observed: dict[str, Tensor], extras: Tensor) -> None:
        self._losses, self._observed, self._extras = losses, observed, extras

    def to_host(self, counts: Mapping[str, Tensor | float], *more: Tensor) -> tuple[Totals, list[float], list[float]]:
        """Copy the small values to the host together; observations stay on the device until they are read.

        Args:
            counts: numbers of targets of the whole global batch, for the totals.
            more: further scalars to copy to the host.

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
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors.values()]).cpu()
    parts = torch.split(flat, [tensor.numel() for tensor in tensors.values()])
    return {name: part.view(tensors[name].shape) for name, part in zip(tensors, parts, strict=True)}
