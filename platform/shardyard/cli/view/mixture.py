"""The mixture of a run over its tokens, as bars."""

from __future__ import annotations

from collections.abc import Iterator

from shardyard.cli.view.plot import ASCII_BARS, BARS
from shardyard.planning.plan import RunPlan
from shardyard.planning.sources import segments_of, shares_over
from shardyard.units import format_count

COLUMNS = 48


def mixture_lines(plan: RunPlan, *, ascii_only: bool = False, columns: int = COLUMNS) -> Iterator[str]:
    """A line of bars for each source: the height is its share, from 0 to 1, at that part of the run."""
    if len(plan.sources) < 2:
        return
    segments = segments_of(plan.sources, plan.stage_tokens)
    width = max(len(source.name) for source in plan.sources)
    yield f"share of each source over the {format_count(plan.tokens)} tokens of the run"
    for index, source in enumerate(plan.sources):
        shares = shares_over(segments, index, columns, plan.tokens)
        ends = f"{shares[0]:.0%}" if abs(shares[0] - shares[-1]) < 0.005 else f"{shares[0]:.0%} → {shares[-1]:.0%}"
        yield f"  {source.name:<{width}}  {''.join(_bar(share, ascii_only=ascii_only) for share in shares)}  {ends}"
    if len(plan.stages) > 1:
        marks = [" "] * columns
        for number, stage in enumerate(plan.stages, 1):
            begin = plan.tokens_at(stage.begin)
            marks[min(columns - 1, int(begin / plan.tokens * columns))] = str(number)[-1]
        yield f"  {'stage':<{width}}  {''.join(marks).rstrip()}"
    if segments and segments[-1].end < plan.tokens:
        yield f"  the sources are exhausted after {format_count(segments[-1].end)} tokens"


def _bar(share: float, *, ascii_only: bool) -> str:
    if share <= 0:
        return " "
    shown = ASCII_BARS if ascii_only else BARS
    return shown[min(len(shown) - 1, int(share * len(shown) + 1e-6))]
