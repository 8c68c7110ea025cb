"""The hash of tensors, and which ranks differ."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from shardyard.engine.anomalies import content_hash
from shardyard.engine.anomalies.content_hash import COLUMNS, ContentHash
from shardyard.engine.anomalies.replicas import Replicas, minority
from shardyard.engine.mesh import make_mesh
from shardyard.engine.world import Rank
from shardyard.recipe.mesh import data_mesh
from support.ranks import run_ranks

CPU = torch.device("cpu")


def reference(tensor: Tensor) -> int:
    """The hash as its definition says, in Python's integers."""
    raw = tensor.contiguous().view(torch.uint8).numpy().tobytes()
    raw += b"\0" * (-len(raw) % (8 * COLUMNS))
    columns = [int(value) for value in ContentHash(CPU)._columns]
    total = 0
    for at in range(0, len(raw), 8):
        row, column = divmod(at // 8, COLUMNS)
        total += int.from_bytes(raw[at : at + 8], "little", signed=True) * columns[column] * (2 * row + 1)
    total %= 1 << 64
    return total - (1 << 64) if total >= 1 << 63 else total


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.float64])
@pytest.mark.parametrize("size", [1, 7, 4096, 300_001])
def test_the_hash_is_what_its_definition_says(dtype: torch.dtype, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_hash, "_SMALL_BYTES", 1 << 30)
    tensor = (torch.rand(size, generator=torch.Generator().manual_seed(size)) * 200 - 100).to(dtype)
    assert int(ContentHash(CPU)([tensor])) == reference(tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_flipped_bit_is_noticed(dtype: torch.dtype) -> None:
    tensor = torch.randn(700_001, generator=torch.Generator().manual_seed(1)).to(dtype)
    of = ContentHash(CPU)
    before = int(of([tensor]))
    bits = 8 * tensor.element_size()
    whole = tensor.view(torch.int32 if bits == 32 else torch.int16)
    for at in (0, 1, 511, 4097, 524_288, 700_000):
        for bit in (0, bits // 2, bits - 1):
            value = whole[at].clone()
            whole[at] ^= torch.tensor((1 << bit) - (1 << bits if bit == bits - 1 else 0), dtype=whole.dtype)
            assert int(of([tensor])) != before, (at, bit)
            whole[at] = value
    assert int(of([tensor])) == before


def test_small_tensors_are_put_together_up_to_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    together = content_hash._together

    def counted(parts: list[Tensor]) -> Tensor:
        made.append(sum(part.numel() for part in parts))
        return together(parts)

    monkeypatch.setattr(content_hash, "_together", counted)
    monkeypatch.setattr(content_hash, "HASHED_TOGETHER_BYTES", 10_000)
    tensors = [torch.full((1000,), value, dtype=torch.float32) for value in range(5)]
    of = ContentHash(CPU)
    before = int(of(tensors))
    assert made == [8000, 8000, 4000]
    tensors[2][7] += 1
    assert int(of(tensors)) != before


def test_places_count() -> None:
    of = ContentHash(CPU)
    one = torch.arange(600_000, dtype=torch.float32)
    swapped = one.clone()
    swapped[[3, 500_003]] = one[[500_003, 3]]
    assert int(of([one])) != int(of([swapped]))
    assert int(of([one, swapped])) != int(of([swapped, one]))
    # A slice need not begin where an integer does.
    assert int(of([one[1:]])) == int(of([one[1:].clone()]))
    assert int(of([one.view(600, 1000).t()])) == int(of([one.view(600, 1000).t().contiguous()]))


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ([1, 1, 1], []),
        ([1, 2], [0, 1]),
        ([1, 1, 2], [2]),
        ([1, 2, 2, 1], [0, 1, 2, 3]),
        ([5], []),
        ([1, 2, 3], [0, 1, 2]),
    ],
)
def test_the_minority_is_named_and_all_where_there_is_none(values: list[int], named: list[int]) -> None:
    assert minority(range(len(values)), values) == named


def compared(rank: Rank, flip_at: tuple[int, ...]) -> list[tuple[tuple[int, ...], str] | None]:
    """Three comparisons: of equal weights, of a flip that an update has overwritten, of one that stays."""
    mesh = make_mesh(data_mesh(rank.world_size), rank)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 300), nn.Linear(300, 2))
    replicas = Replicas(model, mesh)
    found = []
    for number in range(3):
        for step in range(3):
            weight = model[0].weight.data.view(torch.int32)
            if rank.rank in flip_at and number and step == 1:
                weight[7, 7] ^= 1 << 20
            replicas.add()
            if rank.rank in flip_at and number == 1 and step == 1:
                weight[7, 7] ^= 1 << 20
        difference = replicas.compare(3 * (number + 1), [torch.ones(3)])
        found.append(None if difference is None else (difference.ranks, difference.text))
    return found


@pytest.mark.slow
def test_a_rank_that_differs_is_named_even_once_its_weights_are_overwritten() -> None:
    every = run_ranks(3, compared, (2,))
    assert every[0] == every[1] == every[2]
    equal, overwritten, stays = every[0]
    before = "rank 2 differs from the 2 others"
    assert equal is None
    assert overwritten == (
        (2,),
        f"{before} in weights that an update has overwritten since; they were equal at step 3",
    )
    assert stays == ((2,), f"{before} in 0.weight; they were equal at step 6")
    (_, _, last), _ = run_ranks(2, compared, (1,))
    assert last == ((0, 1), "ranks 0 and 1 differ from each other in 0.weight; they were equal at step 6")
