"""A batch that is skipped leaves nothing: the run ends with the bits of one that was told before to skip it."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from deepspeed.accelerator import get_accelerator
from safetensors.torch import load_file
from torch import Tensor

from shardyard.engine import run, step
from shardyard.engine.run import Job, run_rank
from shardyard.engine.session import Session
from shardyard.engine.world import Rank
from shardyard.errors import RollbackError, ShardyardError
from shardyard.objectives.base import Measured
from shardyard.replaced import replaced
from shardyard.tracking.run.events import AnomalyDocuments, AnomalyFound, read_events
from shardyard.tracking.run.folder import read_metrics
from support.ranks import run_ranks
from support.tiny import tiny_job, tiny_recipe, write_corpus

pytestmark = pytest.mark.slow

STEPS, NAN, SPIKE, EVERY = 14, 7, 11, 5


class KilledError(Exception):
    """What a test does to a rank."""


@contextmanager
def faulty(rank: Rank, how: str, *, kill_at: int = 0) -> Iterator[None]:
    """Within it, rank 1's loss or gradient of step NAN is not a number, and the loss of step SPIKE leaps."""
    assemble, backward = run.assemble, step.backward
    at = {"step": 0}

    def assembled(*given: Any, **options: Any) -> Session:
        session = assemble(*given, **options)
        measure, next_batch = session.objective.measure, session.next_batch

        def counted() -> Any:
            at["step"] = session.engine.global_steps + 1
            if at["step"] == kill_at:
                raise KilledError
            return next_batch()

        def measured(*inputs: Any) -> Measured:
            found = measure(*inputs)
            losses: dict[str, Tensor] = dict(found.losses)
            if at["step"] == NAN and how == "loss" and rank.rank == 1:
                losses = {name: value * math.nan for name, value in losses.items()}
            if at["step"] == SPIKE:
                losses = {name: value * 100 for name, value in losses.items()}
            return replace(found, losses=losses)

        session.next_batch = counted  # type: ignore[method-assign]
        session.objective = _WithMeasure(session.objective, measured)  # type: ignore[assignment]
        return session

    def spoiled(engine: Any, loss: Tensor) -> None:
        backward(engine, loss * math.nan if at["step"] == NAN and how == "gradient" and rank.rank == 1 else loss)

    with replaced(run, "assemble", assembled if how else assemble), replaced(step, "backward", spoiled):
        yield


class _WithMeasure:
    def __init__(self, objective: Any, measure: Any) -> None:
        self._objective, self.measure = objective, measure

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objective, name)


def run_all(rank: Rank, cases: dict[str, tuple[Job, str, tuple[int, int]]]) -> dict[str, tuple[str, int]]:
    """Case → outcome, and how often the ranks started."""
    get_accelerator().is_fp16_supported = lambda: True
    run.check_precision = lambda precision, device: None
    return {name: _run(rank, *case) for name, case in cases.items()}


def _run(rank: Rank, job: Job, how: str, killed: tuple[int, int]) -> tuple[str, int]:
    """`killed`: in which start of the ranks, and before which step."""
    for starts in range(1, 9):
        try:
            with faulty(rank, how, kill_at=killed[1] if starts == killed[0] else 0):
                return run_rank(job, rank), starts
        except (RollbackError, KilledError):
            continue
        except ShardyardError as error:
            return str(error), starts
    return "never", 0


ALL_KINDS: dict[str, dict[str, dict[str, Any]]] = {
    **{f"stage {stage}": {"zero": {"stage": stage}} for stage in range(4)},
    "stage 0 in bf16": {"zero": {"stage": 0}, "train": {"precision": "bf16"}},
    "stage 2 in bf16": {"zero": {"stage": 2}, "train": {"precision": "bf16"}},
    "stage 3 in bf16": {"zero": {"stage": 3}, "train": {"precision": "bf16"}},
    "stage 0 in fp16": {"zero": {"stage": 0}, "train": {"precision": "fp16", "initial_loss_scale": 8}},
    "stage 1 in fp16": {"zero": {"stage": 1}, "train": {"precision": "fp16", "initial_loss_scale": 8}},
    "muon": {"zero": {"stage": 1}, "optimizer": {"name": "muon", "lr": 0.01}},
}
# `make stages` tries all of them.
_SAMPLE = ("stage 0", "stage 1", "stage 3", "stage 0 in bf16", "stage 2 in bf16")
KINDS = {
    kind: sections for kind, sections in ALL_KINDS.items() if kind in _SAMPLE or os.environ.get("SHARDYARD_ALL_STAGES")
}
HOW = {kind: "gradient" if number % 2 else "loss" for number, kind in enumerate(ALL_KINDS)}
SKIPS = {"on_nan": "skip", "on_spike": "skip", "window": 8, "threshold": 8.0}
BACK = {**SKIPS, "on_nan": "rollback", "on_spike": "rollback"}
Found = tuple[Job, str, int]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Found]:
    """Case → the job, its outcome, and how often its ranks started."""
    folder = tmp_path_factory.mktemp("anomalies")
    corpus = write_corpus(folder)

    def job(kind: str, **more: Any) -> Job:
        base: dict[str, Any] = {
            "model": {"dropout": 0.1},
            "train": {"steps": STEPS, "micro_batch": 2},
            "checkpoint": {"every": EVERY},
            "cluster": {"workers": 2},
            "evaluate": {"every": STEPS},
        }
        for sections in (KINDS[kind], more):
            for name, section in sections.items():
                base[name] = {**base.get(name, {}), **section}
        return tiny_job(tiny_recipe(corpus, **base), folder, world_size=2)

    never = (0, 0)
    cases: dict[str, tuple[Job, str, tuple[int, int]]] = {}
    for kind in KINDS:
        cases[f"{kind}, told"] = job(kind, train={"skip_steps": [NAN, f"{SPIKE}-{SPIKE}"]}), "", never
        cases[f"{kind}, skip"] = job(kind, anomalies=SKIPS), HOW[kind], (1, NAN + 2) if kind == "stage 3" else never
    cases["stage 1, rollback"] = job("stage 1", anomalies=BACK), "loss", never
    cases["before"] = job("stage 0", anomalies={**BACK, "before": 3}), "loss", (2, NAN + 2)
    cases["before, told"] = job("stage 0", train={"skip_steps": ["4-7", "8-11"]}), "", never
    cases["at most 1"] = job("stage 0", anomalies={**SKIPS, "at_most": 1}), "gradient", never
    cases["stop"] = job("stage 1", anomalies={"on_nan": "stop"}), "gradient", never
    cases["lower"] = job("stage 1", anomalies={**SKIPS, "on_nan": "lower_rate", "rate_steps": 3}), "loss", never
    (outcomes, *_) = run_ranks(2, run_all, cases)
    return {name: (cases[name][0], *outcome) for name, outcome in outcomes.items()}


def weights(job: Job) -> dict[str, Tensor]:
    return load_file(job.folder.path / "final" / "model.safetensors")


def metrics(job: Job, name: str) -> dict[int, float]:
    return {int(line["step"]): line[name] for line in read_metrics(job.folder.metrics) if name in line}


def assert_equal(one: Job, other: Job) -> None:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    assert not [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])]
    losses = metrics(other, "train/loss")
    assert {step: value for step, value in metrics(one, "train/loss").items() if step in losses} == losses


def found(job: Job) -> list[AnomalyFound]:
    return [event for event in read_events(job.folder.events) if isinstance(event, AnomalyFound)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_skipped_batch_leaves_what_one_leaves_that_was_never_computed(runs: dict[str, Found], kind: str) -> None:
    """At stage 3 the ranks are killed between the decision and the next checkpoint."""
    (ours, outcome, starts), (told, told_outcome, _) = runs[f"{kind}, skip"], runs[f"{kind}, told"]
    assert (outcome, told_outcome, starts) == ("finished", "finished", 2 if kind == "stage 3" else 1)
    events = [(event.step, event.what, event.action, event.count) for event in found(ours)]
    assert events == [(NAN, "nan", "skip", 1)] * starts + [(SPIKE, "spike", "skip", 2)]
    assert_equal(ours, told)
    assert set(metrics(ours, "train/skipped")) == set(metrics(told, "train/skipped")) == {NAN, SPIKE}


def test_after_a_rollback_the_same_follows(runs: dict[str, Found]) -> None:
    ours, *outcome = runs["stage 1, rollback"]
    assert outcome == ["finished", 3]
    assert [(event.step, event.skipped, event.checkpoint_step) for event in found(ours)] == [
        (NAN, (NAN,), EVERY),
        (SPIKE, (SPIKE,), 2 * EVERY),
    ]
    assert_equal(ours, runs["stage 1, told"][0])


def test_a_rollback_skips_batches_before_and_survives_a_kill(runs: dict[str, Found]) -> None:
    ours, *outcome = runs["before"]
    assert outcome == ["finished", 4]
    assert [(event.skipped, event.checkpoint_step) for event in found(ours)] == [
        ((4, 5, 6, 7), 0),
        ((8, 9, 10, 11), EVERY),
    ]
    assert_equal(ours, runs["before, told"][0])


def test_the_documents_of_the_batch_are_told(runs: dict[str, Found]) -> None:
    ours = runs["stage 1, skip"][0]
    one, other = (event for event in read_events(ours.folder.events) if isinstance(event, AnomalyDocuments))
    assert {one.step, other.step} == {NAN, SPIKE}
    assert one.rows == ours.recipe.train.global_batch
    assert len(one.named) == min(16, one.documents or 0) > 4
    assert all(re.search(r"^/\S+/corpus-400-0\.jsonl:\d+ [0-9a-f]{12}$", name) for name in one.named), one.named
    first = found(ours)[0]
    assert (first.first_row, first.last_row) == (48, 55)


def test_a_run_ends_by_default_and_once_its_actions_are_used_up(runs: dict[str, Found]) -> None:
    job, outcome, _ = runs["stop"]
    assert outcome.startswith(f"the gradient norm is inf at step {NAN}. Lower optimizer.lr")
    assert f"--step {EVERY} " in outcome
    assert [event.action for event in found(job)] == ["stop"]
    job, outcome, _ = runs["at most 1"]
    assert re.match(r"the loss is \d+(\.\d+)? at step 11, \d+\.\d deviations above \d\.\d+ \(anomalies", outcome)
    assert "(anomalies.at_most is 1, and used up)" in outcome


def test_a_lowered_rate_is_that_of_the_schedule_again_later(runs: dict[str, Found]) -> None:
    lowered, schedule = (metrics(runs[case][0], "train/lr") for case in ("lower", "stage 1, told"))
    factors = {step: lowered[step] / schedule[step] for step in schedule if step >= NAN}
    assert factors == {step: 0.5 if step in (8, 9, 10) else 1.0 for step in range(NAN, STEPS + 1)}
