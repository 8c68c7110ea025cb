"""A hash of tensors in exact integer arithmetic, on their device, without waiting for it.

A tensor's bytes are a matrix of 64-bit integers, R rows of 512. Its hash is the sum of each integer times an odd factor
of its column and an odd factor of its row, modulo 2^64. One changed bit b of an integer changes the sum by 2^b times an
odd number, which never is a multiple of 2^64: it is always noticed, and so is one integer in the place of another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from shardyard.planning.memory import HASH_PRODUCTS_BYTES, HASHED_TOGETHER_BYTES

COLUMNS = 512
_ROW_BYTES = 8 * COLUMNS
# Rows that are multiplied at once: their products stay in a cache.
_ROWS = {device: size // _ROW_BYTES for device, size in HASH_PRODUCTS_BYTES.items()}
# Smaller tensors are put together first, up to HASHED_TOGETHER_BYTES: kernels take time to start.
_SMALL_BYTES = 1 << 20


class ContentHash:
    """Hashes tensors of one device."""

    def __init__(self, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(16)
        factors = torch.randint(-(1 << 62), 1 << 62, (COLUMNS,), generator=generator, dtype=torch.int64)
        self._columns = (factors * 2 + 1).to(device)
        self._rows = _ROWS.get(device.type, 512)
        self._zero = torch.zeros((), dtype=torch.int64, device=device)

    def __call__(self, tensors: Iterable[Tensor]) -> Tensor:
        """The hash of tensors in their order, an int64 on the device."""
        found = self._zero.clone()
        with torch.no_grad():
            for matrix in _matrices(tensors):
                # Odd, so that no part of what came before is lost.
                found.mul_(0x5851F42D4C957F2D).add_(self._of(matrix))
        return found

    def _of(self, matrix: Tensor) -> Tensor:
        """The hash of R rows of integers [R, 512]."""
        # Not kept: at the peak of a step, in the backward pass, nothing is hashed.
        products = torch.empty(min(self._rows, len(matrix)), COLUMNS, dtype=torch.int64, device=matrix.device)
        sums = [self._row_sums(part, products) for part in torch.split(matrix, self._rows)]
        rows = torch.cat(sums) if len(sums) > 1 else sums[0]
        return rows.mul_(torch.arange(1, 2 * len(rows), 2, device=rows.device)).sum()

    def _row_sums(self, rows: Tensor, products: Tensor) -> Tensor:
        return torch.mul(rows, self._columns, out=products[: len(rows)]).sum(1)


def _matrices(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """The bytes of tensors as rows of integers; what does not fill a row is put together, and filled up with zeros."""
    rest: list[Tensor] = []
    for tensor in tensors:
        flat = tensor.detach().contiguous().reshape(-1)
        flat = flat.view(torch.uint8) if flat.dtype != torch.bool else flat.to(torch.uint8)
        whole = 0 if flat.numel() < _SMALL_BYTES else flat.numel() // _ROW_BYTES * _ROW_BYTES
        if whole:
            first = flat[:whole]
            # Integers begin at multiples of their size.
            first = first if first.storage_offset() % 8 == 0 else first.clone()
            yield first.view(torch.int64).view(-1, COLUMNS)
        if whole < flat.numel():
            if rest and sum(part.numel() for part in rest) + flat.numel() - whole > HASHED_TOGETHER_BYTES:
                yield _together(rest)
                rest = []
            rest.append(flat[whole:])
    if rest:
        yield _together(rest)


def _together(parts: list[Tensor]) -> Tensor:
    filling = -sum(part.numel() for part in parts) % _ROW_BYTES
    together = torch.cat([*parts, torch.zeros(filling, dtype=torch.uint8, device=parts[0].device)])
    return together.view(torch.int64).view(-1, COLUMNS)
