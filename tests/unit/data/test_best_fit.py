"""Best-fit decreasing: the packing of the definition, in time that grows with the number of items."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from shardyard.data.stream.best_fit import best_fit


def by_definition(lengths: list[int], room: int) -> list[list[int]]:
    """Each item, from the longest on, into the bin with the least space that has room for it."""
    bins: list[list[int]] = []
    for item in sorted(range(len(lengths)), key=lambda item: -lengths[item]):
        space = [room - sum(lengths[other] for other in found) for found in bins]
        fitting = [number for number, left in enumerate(space) if left >= lengths[item]]
        if fitting:
            bins[min(fitting, key=space.__getitem__)].append(item)
        else:
            bins.append([item])
    return [sorted(found) for found in bins]


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), max_size=40), room=st.integers(1, 40))
def test_it_is_best_fit_decreasing(lengths: list[int], room: int) -> None:
    assert best_fit(lengths, room) == by_definition(lengths, room)


def test_examples() -> None:
    assert best_fit([5, 3, 5, 3, 2], 8) == [[0, 1], [2, 3], [4]]
    assert best_fit([9, 1], 8) == [[0], [1]], "an item longer than a bin is alone"
    assert best_fit([], 8) == []


def test_many_items_are_packed_densely() -> None:
    """A million comparisons of each item with each bin would take minutes."""
    lengths = [1 + (n * 7919) % 1500 for n in range(20_000)]
    packed = best_fit(lengths, 2048)
    assert sorted(item for found in packed for item in found) == list(range(len(lengths)))
    assert all(sum(lengths[item] for item in found) <= 2048 for found in packed)
    assert sum(lengths) / (len(packed) * 2048) > 0.999
