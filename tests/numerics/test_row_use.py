"""Whole documents and batches of like length in training: the same losses on one and two ranks and after a resume, and
what is recorded of tokens, padding and cuts."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shardyard.engine.run import Job, run_rank
from shardyard.engine.world import Rank
from shardyard.launch.run.prepare import prepare
from shardyard.planning.plan import World
from shardyard.planning.plan_text import rows
from shardyard.tracking.run.folder import read_metrics
from support.ranks import run_ranks
from support.tiny import CONFIGS, tiny_job, tiny_recipe, write_corpus

pytestmark = pytest.mark.slow

STEPS, BATCH, LENGTH = 6, 8, 256
TRAINING = {"train": {"steps": STEPS, "global_batch": BATCH}, "checkpoint": {"every": 3}, "evaluate": {"every": 6}}


def jobs_in_order(rank: Rank, jobs: list[Job]) -> list[str]:
    return [run_rank(job, rank) for job in jobs]


def recipes(folder: Path) -> dict[str, Any]:
    corpus = write_corpus(folder, 200)
    generator = random.Random(0)
    talks = [
        [
            {"role": "user", "content": "why" + "?" * int(generator.lognormvariate(3, 1))},
            {"role": "assistant", "content": "because" + "!" * generator.randint(1, 30)},
        ]
        for _ in range(120)
    ]
    chat = folder / "talks.jsonl"
    chat.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    fields = {"sequence_length": LENGTH, "train": [{"path": str(chat), "holdout": 0.1}], "group_by_length": True}
    model = {"config": {**CONFIGS["gpt2"], "n_positions": LENGTH}}
    return {
        "packed": tiny_recipe(corpus, data={"packing": "best_fit"}, **TRAINING),
        "joined": tiny_recipe(corpus, **TRAINING),
        "grouped": tiny_recipe(corpus, objective="instruction", model=model, data=fields, **TRAINING),
    }


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Metrics by recipe and way: on one rank, on two, and on one that stopped and went on."""
    folder = tmp_path_factory.mktemp("row-use")
    jobs: dict[tuple[str, str], Job] = {}
    for name, recipe in recipes(folder).items():
        jobs[name, "one"] = tiny_job(recipe, folder / "runs")
        jobs[name, "two"] = tiny_job(recipe, folder / "runs", world_size=2)
        jobs[name, "resumed"] = tiny_job(recipe, folder / "runs", until=3)
    ways = {ranks: [job for (_, way), job in jobs.items() if (way == "two") == (ranks == 2)] for ranks in (1, 2)}
    ways[1] += [replace(job, until=None) for (_, way), job in jobs.items() if way == "resumed"]
    for ranks, given in ways.items():
        assert {ended for rank in run_ranks(ranks, jobs_in_order, given) for ended in rank} <= {"finished", "paused"}
    return {key: list(read_metrics(job.folder.metrics)) for key, job in jobs.items()}


@pytest.mark.parametrize("name", ["packed", "grouped"])
def test_losses_and_counts_do_not_depend_on_ranks_or_restarts(lines: Any, name: str) -> None:
    one = lines[name, "one"]
    assert [line["step"] for line in one] == list(range(1, STEPS + 1))
    for way in ("two", "resumed"):
        for line, other in zip(one, lines[name, way], strict=True):
            assert other["train/loss"] == pytest.approx(line["train/loss"], rel=1e-5)
            assert [other[key] for key in ("data/cut_documents", "data/cut_tokens")] == [
                line[key] for key in ("data/cut_documents", "data/cut_tokens")
            ]
    if name == "packed":  # The batches of a rank are padded to their own longest row where rows are not packed.
        assert [line["data/row_fill"] for line in lines[name, "two"]] == [line["data/row_fill"] for line in one]


def test_padding_is_no_token(lines: Any) -> None:
    for name, positions in (("packed", BATCH * 32), ("joined", BATCH * 32), ("grouped", None)):
        line = lines[name, "one"][0]
        tokens = line["perf/tokens_per_second"] * line["perf/step_seconds"]
        if positions is None:
            assert tokens == pytest.approx(round(tokens))
            assert 0 < tokens < BATCH * LENGTH / 2, "rows are far shorter than sequence_length"
            assert 0.5 < line["data/row_fill"] < 1
        else:
            assert tokens == pytest.approx(positions * line.get("data/row_fill", 1.0))
    assert "data/row_fill" not in lines["joined", "one"][0], "every position holds a token"
    packed, joined = (sum(line["data/cut_documents"] for line in lines[name, "one"]) for name in ("packed", "joined"))
    assert packed < joined == pytest.approx(STEPS * BATCH, abs=10), "nearly every row begins within a document"


def test_a_plan_tells_how_full_rows_will_be(tmp_path: Path) -> None:
    """A window of 16 documents makes few rows, so it says how more would be filled."""
    corpus = write_corpus(tmp_path, 200)
    plans = [
        prepare(tiny_recipe(corpus, data={"packing": packing}), World(size=1, gpu=False))
        for packing in ("best_fit", "concat")
    ]
    why = plans[0].reasons["packing"]
    assert why.startswith("the first 64 rows of the local data are ")
    assert why.endswith("% full; a larger data.shuffle_window fills more")
    assert "packing" not in plans[1].reasons
    assert ("packing", "best_fit", why) in list(rows(plans[0]))
