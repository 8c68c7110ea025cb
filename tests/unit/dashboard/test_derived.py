"""What follows from a recipe, as the page of a run shows it: from plan.json, and from the comments of older folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from shardyard.dashboard.web.details import _wandb_link, recipe
from shardyard.launch.run.plans import PlannedRun, plan_of
from shardyard.launch.sweep.folder import SweepFolder
from shardyard.launch.sweep.run import make_job
from shardyard.planning.plan_text import as_dict, from_dict, rows
from shardyard.recipe.loading.load import load_recipe
from shardyard.recipe.sweep.load import load_sweep
from shardyard.tracking.run.folder import RunFolder


@pytest.fixture
def planned() -> PlannedRun:
    loaded = load_recipe("gpt/quickstart", ["cluster.workers=1"])
    return PlannedRun(loaded, plan_of(loaded, local=True), local=True)


def derived(folder: RunFolder) -> Any:
    return recipe(folder.path, {})["derived"]


def test_a_plan_is_the_same_after_its_file(planned: PlannedRun, tmp_path: Path) -> None:
    folder = planned.create(tmp_path)
    found = json.loads(folder.plan.read_text())
    assert from_dict(found) == planned.plan
    assert (found["format"], found["tokens"]) == (1, planned.plan.tokens)
    assert "reasons" not in folder.info().plan


def test_the_page_reads_numbers_and_needs_no_comments(planned: PlannedRun, tmp_path: Path) -> None:
    folder = planned.create(tmp_path)
    shown = [list(row) for row in rows(planned.plan)]
    text = folder.resolved.read_text()
    folder.resolved.write_text(text.partition("\n# Derived:\n")[0])
    assert derived(folder) == shown
    folder.resolved.write_text(text)
    for broken in (
        None,
        "{",
        "[]",
        json.dumps({"format": 1, "steps": 3}),
        json.dumps(as_dict(planned.plan) | {"reasons": {}}),
    ):
        folder.plan.unlink() if broken is None else folder.plan.write_text(broken)
        # A folder of before, or one that somebody spoilt. Its reader mistakes the colon in one value for its own.
        assert [row for row in derived(folder) if "network" not in row[0]] == [
            row for row in shown if row[0] != "network"
        ]


def test_a_trial_shows_what_follows_from_its_recipe(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    with path.open("w") as file:
        base = {"name": "small", "recipe": "gpt/quickstart", "overrides": {"cluster.workers": 1}}
        YAML(typ="safe").dump({**base, "parameters": {"optimizer.lr": {"values": [1e-3, 3e-3]}}}, file)
    folder = SweepFolder.create(tmp_path / "runs", load_sweep(str(path)))
    job = make_job(folder, folder.sweep(), 0, {"optimizer.lr": 3e-3})
    shown = {name: value for name, value, _ in derived(job.folder)}
    assert shown["steps"] == str(job.plan.steps)
    assert len(shown) > 15


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (
            {"text": "W&B online: see the page", "mode": "online", "url": "https://w.example/r/1"},
            "https://w.example/r/1",
        ),
        ({"text": "W&B offline: http://not.this", "mode": "offline", "url": None}, None),
        ({"text": "W&B online: https://w.example/r/2"}, "https://w.example/r/2"),
        ({"text": "W&B online", "mode": "online", "url": "javascript:alert(1)"}, None),
    ],
)
def test_the_address_at_wandb_is_a_field(event: dict[str, Any], expected: str | None, tmp_path: Path) -> None:
    """The third is as folders of before have it."""
    (tmp_path / "events.jsonl").write_text(json.dumps({"kind": "wandb", "time": 1.0, **event}) + "\n")
    assert _wandb_link(tmp_path) == expected
