"""Draws of sources that keep to their shares evenly, to budgets of tokens, and to stages.

Everything is decided within a stream, from its own rows: no rank needs to know what another draws, and the same rows
follow from any number of ranks and interruptions.

Legend: L = streams, n = number of a row in its stream; row n of stream s is row g = s + n·L of the run.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypedDict

from shardyard.data.stream.shuffle import keyed_words

# First word of the keys of this file; those of `shuffle.py` are smaller.
EVEN_STREAM = 11
_BITS = 64


class MixtureState(TypedDict):
    """What the draws of a stream depend on: tokens drawn of each source, and the sources that have ended, each with the
    passes after which it did."""

    tokens: list[int]
    ended: list[tuple[int, int | None]]


@dataclass(frozen=True)
class Part:
    """A stage as the streams see it: it begins with row `first_row` of the run. Rows have `row_tokens` tokens."""

    first_row: int
    weights: tuple[float, ...]
    row_tokens: int


@dataclass(frozen=True)
class MixturePlan:
    """The draws of a whole run. `budgets`: tokens of each source, or None; `passes`: over each source, or None."""

    parts: tuple[Part, ...]
    budgets: tuple[int | None, ...]
    passes: tuple[int | None, ...]

    @property
    def is_finite(self) -> bool:
        """Whether all sources of a stage can be exhausted."""
        limited = [b is not None or p is not None for b, p in zip(self.budgets, self.passes, strict=True)]
        return any(all(limited[source] for source, weight in enumerate(part.weights) if weight) for part in self.parts)

    def budget_of(self, source: int, stream: int, streams: int) -> int | None:
        """The tokens of one stream of a source's budget; those of all streams add up to it, in whole rows."""
        budget = self.budgets[source]
        if budget is None:
            return None
        unit = math.gcd(*(part.row_tokens for part in self.parts))
        units = budget // unit
        return (units * (stream + 1) // streams - units * stream // streams) * unit


class EvenMixture:
    """Draws the source of each row of a stream. A source is passed over once its budget is used or it has ended.

    Row n is drawn at u = the bits of n in reverse, shifted by random bits of the stream: a van der Corput sequence with
    a digital shift, of which any 2^k consecutive values from a multiple of 2^k on lie in different intervals of 2^-k.
    So while weights stay and no source ends, the number of rows of a source of share p among the first n differs from
    n·p by less than twice the number of ones in the binary n, which is at most 2·log2(n) + 2. See Niederreiter 1992,
    chapter 3, and Owen 1995 for the shift, which makes each draw uniform.
    """

    def __init__(self, plan: MixturePlan, seed: int, stream: int, streams: int) -> None:
        self._plan, self._stream, self._streams = plan, stream, streams
        self._shift = int(keyed_words(1, EVEN_STREAM, seed, stream)[0])
        number = len(plan.budgets)
        self._budgets = [plan.budget_of(source, stream, streams) for source in range(number)]
        self._begins = [part.first_row for part in plan.parts]
        self._tokens = [0] * number
        self._ended: set[int] = set()

    def part_of(self, row: int) -> int:
        """The number of the stage of row `row` of the stream."""
        return bisect_right(self._begins, self._stream + row * self._streams) - 1

    def draw(self, row: int) -> int | None:
        """The source of row `row`, which may be asked for again once a source has ended; None if none is left."""
        part = self._plan.parts[self.part_of(row)]
        weights = [weight if self._has(source, part) else 0.0 for source, weight in enumerate(part.weights)]
        bounds = list(accumulate(weights))
        if not bounds[-1]:
            return None
        # In doubles below 1: the 53 leading bits.
        at = (_reversed(row) ^ self._shift) >> (_BITS - 53)
        chosen = bisect_right(bounds, at * 2.0**-53 * bounds[-1])
        # The product may be rounded up to the end.
        return chosen if chosen < len(bounds) else max(s for s, weight in enumerate(weights) if weight)

    def drawn(self, source: int, row: int) -> None:
        """Count row `row`, which was made of `source`."""
        self._tokens[source] += self._plan.parts[self.part_of(row)].row_tokens

    def drop(self, source: int) -> None:
        """Draw no further rows of a source that has ended."""
        self._ended.add(source)

    def state(self) -> MixtureState:
        """JSON-able."""
        return {
            "tokens": list(self._tokens),
            "ended": [(source, self._plan.passes[source]) for source in sorted(self._ended)],
        }

    def load_state(self, state: MixtureState) -> None:
        """Continue where `state` was taken. A source that is allowed more passes by now goes on."""
        self._tokens = list(state["tokens"])
        self._ended = {source for source, passes in state["ended"] if not self._may_go_on(source, passes)}

    def _may_go_on(self, source: int, passes: int | None) -> bool:
        now = self._plan.passes[source]
        return passes is not None and (now is None or now > passes)

    def _has(self, source: int, part: Part) -> bool:
        budget = self._budgets[source]
        left = budget is None or self._tokens[source] + part.row_tokens <= budget
        return left and source not in self._ended


def _reversed(number: int) -> int:
    """The 64 bits of a number in reverse order."""
    return int(f"{number:064b}"[::-1], 2)


def plan_of(
    weights: Sequence[Sequence[float]],
    first_rows: Sequence[int],
    row_tokens: Sequence[int],
    *,
    budgets: Sequence[int | None],
    passes: Sequence[int | None],
) -> MixturePlan:
    """The draws of a run from what each of its stages has."""
    parts = [Part(*found) for found in zip(first_rows, map(tuple, weights), row_tokens, strict=True)]
    return MixturePlan(tuple(parts), tuple(budgets), tuple(passes))
