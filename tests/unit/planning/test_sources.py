"""What a run takes of each source, by stage and over its tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer

from shardyard.cli.commands.plan import plan as plan_command
from shardyard.cli.view.mixture import mixture_lines
from shardyard.errors import UsageError
from shardyard.launch.mixture_plot import plot_mixture
from shardyard.launch.run.prepare import prepare
from shardyard.planning.plan import RunPlan, World, fixed
from shardyard.planning.plan_text import as_dict, from_dict, resolved_text, rows
from shardyard.planning.stages import expected_mixture, expected_tokens, milestones, rows_planned, stage_of_record
from shardyard.recipe.loading.load import dump_recipe
from support.tiny import tiny_recipe, write_corpus


def staged(folder: Path, **sections: Any) -> tuple[Any, RunPlan]:
    corpora = [write_corpus(folder, 60, seed) for seed in (0, 1)]
    data = {
        "train": [{"path": str(corpora[0]), "holdout": 0.1}, {"path": str(corpora[1]), "tokens": 1024, "epochs": 3}],
        "stages": [{"at": 0.5, "name": "long", "weights": [1.0, 3.0], "sequence_length": 64, "global_batch": 16}],
    }
    recipe = tiny_recipe(corpora[0], data={**data, **sections.pop("data", {})}, **sections)
    return recipe, prepare(recipe, World(2, gpu=False))


def test_a_source_gives_its_share_until_its_budget_is_used() -> None:
    found = expected_mixture([(100, [1.0, 1.0, 2.0]), (100, [1.0, 1.0, 0.0])], [None, 30, 200])
    assert [(one.stage, one.begin, one.end) for one in found] == [(0, 0, 100), (1, 100, 110), (1, 110, 200)]
    assert [one.shares for one in found] == [(0.25, 0.25, 0.5), (0.5, 0.5, 0.0), (1.0, 0.0, 0.0)]
    assert expected_tokens([100, 100], [[1, 1, 2], [1, 1, 0]], [None, 30, 200]) == pytest.approx([120, 30, 50])
    # Nothing is left to draw: the run ends there.
    assert expected_mixture([(100, [1.0, 1.0])], [10, 30])[-1].end == 40


def test_a_plan_has_the_numbers_of_each_stage_and_survives_its_file(tmp_path: Path) -> None:
    recipe, plan = staged(tmp_path)
    first, second = plan.stages
    assert (plan.steps, first.end, second.begin, second.end) == (20, 10, 10, 20)
    assert (first.tokens_per_step, second.tokens_per_step) == (8 * 32, 16 * 64)
    assert (second.first_row, rows_planned(12, 8, plan.stages), rows_planned(12, 8, ())) == (80, 80 + 32, 96)
    assert plan.tokens == 10 * 256 + 10 * 1024
    assert [plan.tokens_at(step) for step in (0, 10, 11)] == [0, 2560, 3584]
    assert (plan.stage_at(10), plan.stage_at(11)) == (first, second)
    assert second.flops_per_token > first.flops_per_token
    # The batch of the most micro-batches is what DeepSpeed is told.
    assert plan.deepspeed["gradient_accumulation_steps"] == max(one.accumulation for one in plan.stages)
    again = from_dict(as_dict(plan))
    assert (again.stages, again.sources) == (plan.stages, plan.sources)
    assert stage_of_record(as_dict(plan)["stages"][1]) == second  # type: ignore[index]
    assert stage_of_record({"name": "of another version"}) is None
    ends = milestones(as_dict(plan))
    assert ends is not None
    assert [ends.tokens_at(step) for step in (0, 10, 11, 20, 30)] == [
        *map(plan.tokens_at, (0, 10, 11, 20)),
        plan.tokens,
    ]
    assert ends.flops[-1] == pytest.approx(plan.flops)
    assert milestones({"stages": [{"begin": 0}]}) is milestones({}) is None
    assert fixed(recipe, plan).data.stages == recipe.data.stages


def test_sources_and_stages_are_told_and_drawn(tmp_path: Path) -> None:
    recipe, plan = staged(tmp_path)
    told = {name: (value, why) for name, value, why in rows(plan)}
    assert told["source corpus-60-1.jsonl"] == ("8.0%, 1.0K tokens", "at most 3 passes, at most 1024 tokens")
    assert told["stage 2 (long)"][0] == "steps 11 to 20, 10.2K tokens"
    assert told["stage 2 (long)"][1].startswith("16 rows × 64 tokens a step; corpus-60-0.jsonl 100%")
    assert "# stage 2 (long): steps 11 to 20" in resolved_text(recipe, plan)
    lines = list(mixture_lines(plan, ascii_only=True, columns=20))
    assert lines[1:] == [
        "  corpus-60-0.jsonl  +++@@@@@@@@@@@@@@@@@  50% → 100%",
        "  corpus-60-1.jsonl  +++.                  50% → 0%",
        "  stage              1   2",
    ]
    _, plain = staged(tmp_path, data={"train": [{"source": "python-docs"}], "stages": []})
    assert (plain.sources, plain.stages, list(mixture_lines(plain))) == ((), (), [])


def test_the_mixture_is_a_figure(tmp_path: Path) -> None:
    _, plan = staged(tmp_path)
    figure = tmp_path / "mixture.svg"
    plot_mixture(plan, figure)
    first = figure.read_text()
    assert "<svg" in first
    plot_mixture(plan, figure)
    assert figure.read_text() == first


def test_what_cannot_be_drawn_is_said(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path, 60)
    recipe = tmp_path / "one.yaml"
    recipe.write_text(dump_recipe(tiny_recipe(corpus)))
    with pytest.raises(UsageError, match="the recipe has one source"):
        plan_command(str(recipe), plot=tmp_path / "one.svg")
    several = tmp_path / "several.yaml"
    several.write_text(dump_recipe(staged(tmp_path)[0]))
    with pytest.raises(typer.BadParameter, match=r"must end in \.svg, \.png or \.pdf"):
        plan_command(str(several), plot=tmp_path / "mixture.gif")
    with pytest.raises(UsageError, match="the figure cannot be written"):
        plan_command(str(several), plot=tmp_path / "missing" / "mixture.svg")
