"""The mixture of a run over its tokens as a figure: SVG, PNG or PDF by matplotlib."""

from __future__ import annotations

from pathlib import Path

from shardyard.launch.sweep.plot import Panels
from shardyard.planning.plan import RunPlan
from shardyard.planning.sources import segments_of
from shardyard.units import format_count


def plot_mixture(plan: RunPlan, path: Path) -> None:
    """Plot the share of each source over the tokens of the run, stacked, with the beginnings of stages.

    Raises:
        OSError: the file cannot be written.
    """
    segments = segments_of(plan.sources, plan.stage_tokens)
    edges = [one.begin for one in segments] + [one.end for one in segments[-1:]]
    with Panels(1, path) as (panel,):
        bottom = [0.0] * len(segments)
        for index, source in enumerate(plan.sources):
            top = [low + one.shares[index] for low, one in zip(bottom, segments, strict=True)]
            panel.stairs(top, edges, baseline=bottom, fill=True, label=source.name)
            bottom = top
        for number, stage in enumerate(plan.stages[1:], 2):
            begin = plan.tokens_at(stage.begin)
            panel.axvline(begin, color="black", linewidth=0.8, linestyle="dashed")
            panel.annotate(
                stage.name if stage.name != f"stage {number}" else str(number), (begin, 1.01), fontsize="small"
            )
        panel.set(xlim=(0, plan.tokens), ylim=(0, 1.08), xlabel="tokens", ylabel="share of the tokens")
        panel.xaxis.set_major_formatter(lambda value, _: format_count(value))
        panel.legend(loc="lower left", fontsize="small")
