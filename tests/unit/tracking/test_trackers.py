"""Trackers that a recipe names: what they are given, and that what they do keeps no run from going on."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from shardyard import plugins
from shardyard.errors import UsageError
from shardyard.recipe.rules.rules import check
from shardyard.tracking.files import read_jsonl
from shardyard.tracking.metrics.record import StepRecord
from shardyard.tracking.metrics.tracker import Tracker
from shardyard.tracking.run.folder import RunFolder
from shardyard.tracking.trackers.background import Mirror
from shardyard.tracking.trackers.base import ExternalTracker, TrackerInputs
from shardyard.tracking.trackers.registry import mirrors_of
from support.docs.pages import REPOSITORY, blocks_of
from support.tiny import tiny_recipe

PAGE = "docs/extending.md"


class Failing(ExternalTracker):
    """Takes one record and no more."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        raise ConnectionError("the server is gone\nand more of it")


class Waiting(ExternalTracker):
    """Waits in each call until it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.steps: list[int] = []

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.go.wait()
        self.steps.append(step)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "runs", "tiny", "", "")


def notices(run: RunFolder) -> list[str]:
    return [str(event["text"]) for event in read_jsonl(run.events) if event["kind"] == "notice"]


def record(step: int) -> StepRecord:
    return StepRecord(step, {"train/loss": 1.0 / step})


def inputs_of(run: RunFolder, *trackers: dict[str, Any]) -> TrackerInputs:
    recipe = tiny_recipe(run.path / "corpus.jsonl", tracking={"trackers": list(trackers)})
    return TrackerInputs(recipe, run.id, run.path)


def test_the_tracker_of_the_page_writes_its_table_and_says_where(run: RunFolder, tmp_path: Path) -> None:
    page = (REPOSITORY / PAGE).read_text(encoding="utf-8")
    (source,) = (block.text for block in blocks_of(PAGE, page) if block.mark == "csv_table.py")
    (tmp_path / "csv_table.py").write_text(source, encoding="utf-8")
    use = {"name": f"{tmp_path}/csv_table.py:CsvTable", "options": {"metrics": ["train/loss", "none"]}}
    with Tracker(run, *mirrors_of(inputs_of(run, use))) as tracker:
        for step in (1, 2):
            tracker.record(record(step))
    assert (run.path / "table.csv").read_text().split() == ["1,1.0,", "2,0.5,"]
    assert any(text.endswith(f"records go to {run.path / 'table.csv'}") for text in notices(run))


def test_one_that_fails_is_told_and_leaves_the_others(run: RunFolder) -> None:
    waiting = Waiting()
    waiting.go.set()
    tracker = Tracker(run, Mirror(Failing(), "failing"), Mirror(waiting, "waiting"))
    for step in (1, 2, 3):
        tracker.record(record(step))
    tracker.close()
    assert notices(run) == ["failing: the server is gone; continuing without."]
    assert waiting.steps == [1, 2, 3]
    assert len(read_jsonl(run.metrics)) == 3


def test_a_slow_one_drops_the_oldest_records_and_is_not_waited_for(run: RunFolder) -> None:
    waiting = Waiting()
    mirror = Mirror(waiting, "slow", queue_records=2)
    tracker = Tracker(run, mirror)
    for step in range(1, 7):
        tracker.record(record(step))
    tracker.close(0.0)
    waiting.go.set()
    assert len(read_jsonl(run.metrics)) == 6
    assert mirror.dropped >= 3
    assert mirror.problems[0] == "slow: did not finish within 0 s; the run folder has all records."
    assert "because it was too slow" in mirror.problems[1]


@pytest.mark.parametrize(
    ("source", "use", "expected"),
    [
        ("1 / 0", {"name": "theirs.py:T"}, "cannot be imported: ZeroDivisionError"),
        ("def T(inputs): return 1", {"name": "theirs.py:T"}, "theirs.py:T gives no ExternalTracker but int; see docs"),
        ("def T(inputs): return 1", {"name": "theirs.py:T", "options": {"a": 1}}, "does not take the options {'a': 1}"),
        ("", {"name": "absent"}, "there is no tracker 'absent'"),
    ],
)
def test_what_cannot_be_made_says_why(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, use: dict[str, Any], expected: str
) -> None:
    (tmp_path / "theirs.py").write_text(source, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        mirrors_of(inputs_of(run, use))
    assert expected in str(caught.value)


def test_names_that_lead_nowhere_are_problems_of_the_recipe(run: RunFolder) -> None:
    names = ("absent", "absent.py:T", "wandb")
    findings = check(inputs_of(run, *({"name": name} for name in names)).recipe)
    found = [(path, text) for path, text in findings if path[0] == "tracking"]
    assert [path for path, _ in found] == [("tracking", "trackers", index, "name") for index in range(3)]
    assert found[0][1].startswith("no installed package brings a tracker 'absent'")
    assert found[1][1].startswith("there is no file 'absent.py'")
    assert found[2][1] == "W&B is set by tracking.wandb; take it out here"


def test_a_package_that_calls_its_tracker_as_one_of_ours_is_refused(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib.metadata import EntryPoint

    point = EntryPoint("wandb", "theirs:Tracker", "shardyard.trackers")
    monkeypatch.setattr(plugins, "_entry_points", lambda group: (point,) if group == "shardyard.trackers" else ())
    with pytest.raises(UsageError, match=r"provides 'wandb' as one of shardyard.trackers, a name"):
        mirrors_of(inputs_of(run, {"name": "other"}))
