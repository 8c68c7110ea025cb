"""A package with entry points and files beside a recipe: a Ray job trains with them, is resumed and sampled."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from shardyard.tracking.files import read_jsonl
from shardyard.tracking.run.folder import read_metrics
from support.cli import COMMAND
from support.cluster import ray_head
from support.docs.pages import REPOSITORY, blocks_of
from support.tiny import write_corpus
from support.waiting import PATIENCE_SECONDS

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

# Files of the package, by the page that shows them.
PACKAGE = {
    "backwards.py": "docs/extending.md",
    "backwards_rows.py": "docs/extending.md",
    "patience.py": "docs/hooks.md",
}
POINTS = {
    "objectives": "backwards_lm = my_package.backwards:SPEC",
    "formats": "backwards = my_package.backwards_rows:Backwards",
    "hooks": "converged = my_package.patience:Converged",
    "schedulers": "broken = my_package.absent:Scheduler",
}


def block(page: str, mark: str) -> str:
    """The file of a page."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    (found,) = (one.text for one in blocks_of(page, text) if one.mark == mark)
    return found


class Place:
    """A person's folder, with a package on the path and a Ray cluster that has it too."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.work, self.runs = folder / "work", folder / "runs"
        self.environment = {**environment, "SHARDYARD_RUNS": str(self.runs), "SHARDYARD_HOME": str(folder)}

    def run(self, *words: str, fails: bool = False) -> str:
        """Output of `shardyard …` in the person's folder; its errors where it is to fail."""
        environment = {**os.environ, **self.environment}
        done = subprocess.run(
            [*COMMAND, *words],
            cwd=self.work,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stderr if fails else done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("outside")
    site = folder / "site"
    (site / "my_package").mkdir(parents=True)
    (site / "my_package" / "__init__.py").touch()
    for name, page in PACKAGE.items():
        (site / "my_package" / name).write_text(block(page, name), encoding="utf-8")
    info = site / "my_package-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.2\n", encoding="utf-8")
    points = "".join(f"[shardyard.{kind}]\n{line}\n" for kind, line in POINTS.items())
    (info / "entry_points.txt").write_text(points, encoding="utf-8")
    mine = folder / "work" / "mine"
    mine.mkdir(parents=True)
    for page, mark in (
        ("docs/extending.md", "recurrent.py"),
        ("docs/extending.md", "csv_table.py"),
        ("docs/hooks.md", "weight_norm.py"),
    ):
        (mine / mark).write_text(block(page, mark), encoding="utf-8")
    path = {"PYTHONPATH": str(site)}
    with ray_head(folder, dashboard=True, **path) as environment:
        yield Place(folder, {**environment, **path})


@pytest.fixture(scope="module")
def recipe(place: Place) -> str:
    """The recipe, relative to the person's folder; it names the files that lie beside it."""
    fields: dict[str, Any] = {
        "name": "mine",
        "model": {"module": "recurrent.py:RecurrentLM", "config": {"width": 16}},
        "objective": "backwards_lm",
        "data": {
            "sequence_length": 32,
            "streams": 4,
            "isolate_documents": False,
            "train": [{"path": str(write_corpus(place.work)), "holdout": 0.1}],
        },
        "train": {"steps": 3, "global_batch": 4, "precision": "fp32"},
        "optimizer": {"name": "adamw", "lr": 3e-3},
        "evaluate": {"every": 3, "rows": 4},
        "hooks": [
            {"name": "weight_norm.py:WeightNorm"},
            {"name": "converged", "options": {"floor": 0.0, "steps": 3}},
        ],
        "tracking": {
            "wandb": {"mode": "disabled"},
            "trackers": [{"name": "csv_table.py:CsvTable", "options": {"metrics": ["train/loss"]}}],
        },
        "cluster": {"workers": 1},
    }
    with (place.work / "mine" / "recipe.yaml").open("w", encoding="utf-8") as file:
        YAML().dump(fields, file)
    return "mine/recipe.yaml"


def test_a_job_brings_its_code_along_and_the_run_keeps_it(place: Place, recipe: str) -> None:
    place.run("validate", recipe)
    assert json.loads(place.run("plan", recipe, "--json"))
    job = place.run("submit", recipe, "-q").strip()
    place.run("wait", job)
    run = place.runs / job
    lines = read_metrics(run / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(line["weights/norm"] > 0 for line in lines)
    table = (run / "table.csv").read_text().splitlines()
    assert [float(row.partition(",")[2]) for row in table] == pytest.approx([line["train/loss"] for line in lines])

    code = json.loads((run / "run.json").read_text())["provenance"]["code"]
    assert code.keys() == {
        "objective",
        "rows",
        "model.module",
        "hooks[0].name",
        "hooks[1].name",
        "tracking.trackers[0].name",
    }
    for field in ("objective", "rows", "hooks[1].name"):
        assert code[field]["package"] == "my-package 1.2"
    assert all(len(origin["sha256"]) == 64 for origin in code.values())
    kept = {path.name for path in (run / "code").rglob("*.py")}
    assert kept == {"recurrent.py", "csv_table.py", "weight_norm.py"}

    # The person goes on to change what lies beside the recipe, and takes some of it away.
    (place.work / "mine" / "recurrent.py").write_text("raise SystemExit('was imported')", encoding="utf-8")
    (place.work / "mine" / "csv_table.py").unlink()
    place.run("resume", job, "--local", "-s", "train.steps=4")
    assert [line["step"] for line in read_metrics(run / "metrics.jsonl")] == [1, 2, 3, 4]
    assert len((run / "table.csv").read_text().splitlines()) == 4

    refused = place.run("eval", job, fails=True)
    assert "model.module: " in refused
    assert "--trust" in refused
    assert "perplexity" in place.run("eval", job, "--trust")


def test_a_launch_here_reports_what_has_changed_since(place: Place, recipe: str) -> None:
    mine = place.work / "mine"
    for mark in ("recurrent.py", "csv_table.py"):
        (mine / mark).write_text(block("docs/extending.md", mark), encoding="utf-8")
    place.run("launch", recipe, "--local", "-s", "objective=causal_lm")
    run = max(place.runs.glob("mine-*"), key=lambda path: path.stat().st_mtime)
    assert "add --trust" in place.run("sample", run.name, "the", fails=True)
    (sampled,) = place.run("sample", run.name, "the", "--max-new-tokens", "4", "--trust", "--json").splitlines()
    assert json.loads(sampled)["prompt"] == "the"
    hook = mine / "weight_norm.py"
    hook.write_text(hook.read_text(encoding="utf-8") + "\n# changed\n", encoding="utf-8")
    place.run("resume", run.name, "--local", "-s", "train.steps=4")
    notices = [event["text"] for event in read_jsonl(run / "events.jsonl") if event["kind"] == "notice"]
    changed = f"hooks[0].name: {hook.resolve()} has changed since the run began"
    assert f"{changed}; the run goes on with the copy in code/" in notices
    assert not any("model.module" in text for text in notices)


def test_doctor_lists_the_package(place: Place) -> None:
    said = place.run("doctor")
    assert "backwards_lm (objectives, my-package 1.2)" in said
    assert "broken of shardyard.schedulers, brought by my-package 1.2, cannot be used" in said
