"""docs/hooks.md carried out: its hooks train, keep their state over a resume, and their metric is charted."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ruamel.yaml import YAML

from shardyard.engine.hooks.base import NullEventLog
from shardyard.engine.hooks.registry import outside_hooks
from shardyard.engine.run import Job, run_rank
from shardyard.engine.world import Rank
from shardyard.errors import UsageError
from shardyard.recipe.rules.rules import check
from shardyard.tracking.run.folder import read_metrics
from support.dash_cases import served
from support.docs.pages import REPOSITORY, blocks_of
from support.ranks import run_ranks
from support.tiny import tiny_job, tiny_recipe, write_corpus

pytestmark = pytest.mark.slow

BLOCKS = list(blocks_of("docs/hooks.md", (REPOSITORY / "docs/hooks.md").read_text(encoding="utf-8")))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files of the page, in which commands are given."""
    for block in BLOCKS:
        if block.mark:
            (tmp_path / block.mark).write_text(block.text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def hooks_of_page() -> list[dict[str, Any]]:
    """What the recipes of the page say in their section `hooks`, one after the other."""
    return [hook for block in BLOCKS if block.language == "yaml" for hook in YAML(typ="safe").load(block.text)["hooks"]]


def carry_out(rank: Rank, job: Job) -> str:
    return run_rank(job, rank)


def test_the_hooks_of_the_page_train_and_keep_their_state(place: Path) -> None:
    converged, norm = hooks_of_page()
    converged["options"] = {"floor": 1e9, "steps": 5}
    recipe = tiny_recipe(write_corpus(place), hooks=[converged, norm], checkpoint={"every": 3}, tracking={"every": 4})
    job = tiny_job(recipe, place / "runs", until=3)
    assert run_ranks(1, carry_out, job) == ["paused"]
    (saved,) = job.folder.checkpoints.glob("step-*")
    assert json.loads((saved / "trainer.json").read_text())["hooks"]["converged"] == {"below": 3}

    resumed = Job(recipe, job.plan, job.folder)
    assert run_ranks(1, carry_out, resumed) == ["finished"]
    lines = read_metrics(job.folder.metrics)
    # Two more steps, and not five: the count went on where the checkpoint had it.
    assert [line["step"] for line in lines] == [2, 4]
    assert all(line["weights/norm"] > 0 and "train/loss" in line for line in lines)
    texts = [json.loads(line).get("text") for line in job.folder.events.read_text().splitlines()]
    assert "converged at step 5" in texts

    with served(place / "runs", place / "cache") as client:
        found = client.get(f"/api/runs/{job.folder.id}").json()
        assert found["metrics"]["weights"] == ["weights/norm"]
        asked = {"runs": job.folder.id, "metrics": "weights/norm"}
        (curve,) = client.get("/api/series", params=asked).json()["series"]
        assert curve["y"] == pytest.approx([line["weights/norm"] for line in lines], rel=1e-5)


def test_a_hook_that_cannot_be_made_says_why(place: Path) -> None:
    (place / "wrong.py").write_text("nothing = 1\ndef none(inputs): return None\n")
    converged, _ = hooks_of_page()
    inputs: Any = SimpleNamespace(events=NullEventLog(), model=None)
    for hooks, message in (
        ([converged, converged], r"two hooks of this run are called 'converged'"),
        ([converged | {"options": {"ceiling": 1}}], r"does not take the options \{'ceiling': 1\}: .*'ceiling'"),
        ([{"name": "patience.py:Convergd"}], r"patience.py has no 'Convergd'.*Converged"),
        ([{"name": "wrong.py:none"}], r"wrong.py:none gives no Hook with a name but NoneType; see docs/hooks.md"),
        ([{"name": "lost.py:Hook"}], r"there is no file 'lost.py'"),
    ):
        inputs.recipe = tiny_recipe(place / "c.jsonl", hooks=hooks)
        with pytest.raises(UsageError, match=message):
            outside_hooks(inputs, ["checkpoint"])
    inputs.recipe = tiny_recipe(place / "c.jsonl", hooks=[converged])
    with pytest.raises(UsageError, match="two hooks of this run are called 'converged'"):
        outside_hooks(inputs, ["converged"])


def test_a_name_that_no_package_brings_is_a_problem_of_the_recipe(place: Path) -> None:
    found = list(check(tiny_recipe(write_corpus(place), hooks=[{"name": "weight_norm"}, *hooks_of_page()])))
    assert [path for path, _ in found] == [("hooks", 0, "name")]
    assert found[0][1].startswith("no installed package brings a hook 'weight_norm'")
