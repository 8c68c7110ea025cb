"""Draws by plan: shares within their bound, budgets to the row, stages where they begin."""

from __future__ import annotations

import json
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardyard.data.mixture.draws import EvenMixture, plan_of


def even(
    weights: list[float], budgets: list[int | None] | None = None, stream: int = 0, streams: int = 1
) -> EvenMixture:
    nothing: list[int | None] = [None] * len(weights)
    plan = plan_of([weights], [0], [1], budgets=budgets or nothing, passes=nothing)
    return EvenMixture(plan, 7, stream, streams)


def drawn(mixture: EvenMixture, rows: range) -> list[int]:
    found = []
    for row in rows:
        source = mixture.draw(row)
        assert source is not None
        mixture.drawn(source, row)
        found.append(source)
    return found


@settings(max_examples=25, deadline=None)
@given(
    weights=st.lists(st.floats(0.001, 100.0), min_size=1, max_size=6),
    rows=st.integers(1, 1500),
    stream=st.integers(0, 63),
)
def test_the_shares_of_any_number_of_rows_keep_to_the_bound_of_the_sequence(
    weights: list[float], rows: int, stream: int
) -> None:
    counts = Counter(drawn(even(weights, stream=stream, streams=64), range(rows)))
    for source, weight in enumerate(weights):
        asked = rows * weight / sum(weights)
        assert abs(counts[source] - asked) < 2 * rows.bit_count()


def test_the_sequence_is_that_of_van_der_corput_shifted_by_random_bits() -> None:
    """Against the definition (van der Corput 1935): the digits of n in base 2, mirrored at the point."""

    def mirrored(number: int) -> Fraction:
        value, place = Fraction(0), Fraction(1, 2)
        while number:
            number, digit = divmod(number, 2)
            value, place = value + digit * place, place / 2
        return value

    mixture = even([1.0, 1.0, 1.0, 1.0])
    mixture._shift = 0
    assert [mixture.draw(row) for row in range(64)] == [int(4 * mirrored(row)) for row in range(64)]
    shifted = even([1.0] * 4)
    quarter = shifted._shift >> 62
    assert [shifted.draw(row) for row in range(64)] == [int(4 * mirrored(row)) ^ quarter for row in range(64)]


def test_draws_never_change() -> None:
    """Golden: a checkpoint of today must read on in the same order tomorrow."""
    assert drawn(even([0.5, 0.3, 0.2], stream=3, streams=8), range(24)) == [
        1,
        0,
        2,
        0,
        1,
        0,
        2,
        0,
        1,
        0,
        2,
        0,
        1,
        0,
        1,
        0,
        1,
        0,
        2,
        0,
        1,
        0,
        2,
        0,
    ]


@settings(max_examples=15, deadline=None)
@given(
    budget=st.integers(1, 400),
    streams=st.sampled_from([1, 2, 3, 8]),
    weight=st.floats(0.5, 20.0),
    row_tokens=st.sampled_from([1, 4, 7]),
)
def test_a_budget_is_used_to_the_row_and_its_share_goes_to_the_others(
    budget: int, streams: int, weight: float, row_tokens: int
) -> None:
    plan = plan_of([[weight, 1.0, 2.0]], [0], [row_tokens], budgets=[budget, None, None], passes=[None] * 3)
    rows: Counter[int] = Counter()
    for stream in range(streams):
        mixture = EvenMixture(plan, 1, stream, streams)
        own = drawn(mixture, range(3000 // streams))
        rows.update(own)
        if 0 in own:
            after = Counter(own[len(own) - own[::-1].index(0) :])
            assert abs(after[1] - sum(after.values()) / 3) < 2 * 2 * 14
    assert rows[0] == budget // row_tokens


def test_sources_that_have_all_ended_are_told() -> None:
    mixture = even([1.0, 2.0], budgets=[3, 4])
    assert Counter(drawn(mixture, range(7))) == {0: 3, 1: 4}
    assert mixture.draw(7) is None
    ended = even([1.0, 2.0])
    ended.drop(1)
    assert drawn(ended, range(5)) == [0] * 5
    ended.drop(0)
    assert ended.draw(5) is None


@settings(max_examples=15, deadline=None)
@given(
    first=st.integers(1, 200),
    lengths=st.sampled_from([(4, 8), (8, 4), (6, 9), (5, 5)]),
    streams=st.sampled_from([1, 2, 4, 8]),
    stop=st.integers(0, 60),
    budget=st.integers(1, 2000),
)
def test_stages_begin_at_their_row_and_draws_continue_from_a_state(
    first: int, lengths: tuple[int, int], streams: int, stop: int, budget: int
) -> None:
    plan = plan_of(
        [[1.0, 1.0, 0.0], [0.0, 1.0, 3.0]], [0, first], lengths, budgets=[None, budget, None], passes=[None] * 3
    )
    tokens = 0
    for stream in range(streams):
        whole = EvenMixture(plan, 5, stream, streams)
        found = drawn(whole, range(80))
        numbers = [stream + row * streams for row in range(80)]
        assert {source for number, source in zip(numbers, found, strict=True) if number < first} <= {0, 1}
        assert {source for number, source in zip(numbers, found, strict=True) if number >= first} <= {1, 2}
        tokens += sum(lengths[number >= first] for number, source in zip(numbers, found, strict=True) if source == 1)
        begun = EvenMixture(plan, 5, stream, streams)
        drawn(begun, range(stop))
        resumed = EvenMixture(plan, 5, stream, streams)
        resumed.load_state(json.loads(json.dumps(begun.state())))
        assert drawn(resumed, range(stop, 80)) == found[stop:]
    assert tokens <= budget


def test_a_state_is_a_few_numbers_a_source() -> None:
    mixture = even([1.0] * 5, budgets=[10**15] * 5)
    mixture._tokens = [10**14] * 5
    for source in range(5):
        mixture.drop(source)
    assert len(json.dumps(mixture.state())) < 40 * 5


@pytest.mark.parametrize("streams", [1, 2, 3, 8, 64])
def test_the_streams_parts_of_a_budget_add_up(streams: int) -> None:
    plan = plan_of([[1.0]] * 2, [0, 5], [6, 9], budgets=[1000], passes=[None])
    parts = [plan.budget_of(0, stream, streams) or 0 for stream in range(streams)]
    assert sum(parts) == 1000 // 3 * 3
    assert max(parts) - min(parts) <= 3
