"""A batch that is skipped leaves nothing: the run ends with the bits of one that was told before to skip it."""

from __future__ import annotations

import math
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
from shardyard.tracking.run.events import AnomalyFound, AnomalyDocuments, read_events
from shardyard.tracking.run.folder import read_metrics
from support.ranks import run_ranks
from support.tiny import tiny_job, tiny_recipe, write_corpus

pytestmark = pytest.mark.slow

STEPS, NAN, SPIKE, EVERY = 14, 7, 11, 5


class Killed(Exception):
    """What a test does to a rank."""


@contextmanager
def faulty(rank: Rank, job: Job, how: str, *, kill_at: int = 0) -> Iterator[None]:
    """Within it, rank 1's loss or gradient of step NAN is not a number, and the loss of step SPIKE leaps."""
    assemble, backward = run.assemble, step.backward
    at = {"step": 0}

    def assembled(*given: Any, **options: Any) -> Session:
        session = assemble(*given, **options)
        measure, next_batch = session.objective.measure, session.next_batch

        def counted() -> Any:
            at["step"] = session.engine.global_steps + 1
            if at["step"] == kill_at:
                raise Killed
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


def run_all(rank: Rank, cases: dict[str, tuple[Job, str, int]]) -> dict[str, tuple[str, int]]:
    """Case → outcome, and how often the ranks started."""
    get_accelerator().is_fp16_supported = lambda: True
    run.check_precision = lambda precision, device: None
    return {name: _run(rank, *case) for name, case in cases.items()}


def _run(rank: Rank, job: Job, how: str, kill_at: int) -> tuple[str, int]:
    for starts in range(1, 9):
        try:
            with faulty(rank, job, how, kill_at=kill_at if starts == 1 else 0):
                return run_rank(job, rank), starts
        except (RollbackError, Killed):
            continue
        except ShardyardError as error:
            return str(error), starts
    return "never", 0


KINDS = {
    **{f"stage {stage}": {"zero": {"stage": stage}} for stage in range(4)},
    "stage 0 in bf16": {"zero": {"stage": 0}, "train": {"precision": "bf16"}},
    "stage 2 in bf16": {"zero": {"stage": 2}, "train": {"precision": "bf16"}},
    "stage 3 in bf16": {"zero": {"stage": 3}, "train": {"precision": "bf16"}},
    "stage 0 in fp16": {"zero": {"stage": 0}, "train": {"precision": "fp16", "initial_loss_scale": 8}},
    "stage 1 in fp16": {"zero": {"stage": 1}, "train": {"precision": "fp16", "initial_loss_scale": 8}},
    "muon": {"zero": {"stage": 1}, "optimizer": {"name": "muon", "lr": 0.01}},
}
SKIPS = {"on_nan": "skip", "on_spike": "skip", "window": 8, "threshold": 8.0}
BACK = {**SKIPS, "on_nan": "rollback", "on_spike": "rollback"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Job, str, int]]:
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

    cases: dict[str, tuple[Job, str, int]] = {}
    for kind in KINDS:
        cases[f"{kind}, told"] = job(kind, train={"skip_steps": [NAN, f"{SPIKE}-{SPIKE}"]}), "", 0
        how = "gradient" if kind in ("stage 1", "stage 3 in bf16", "stage 0") else "loss"
        cases[f"{kind}, skip"] = job(kind, anomalies=SKIPS), how, 0
    for kind in ("stage 0", "stage 1", "stage 3"):
        cases[f"{kind}, rollback"] = job(kind, anomalies=BACK), "loss", 0
        cases[f"{kind}, killed"] = job(kind, anomalies=SKIPS), "loss", NAN + 2
    cases["stage 1, killed after a rollback"] = job("stage 1", anomalies=BACK), "loss", NAN - 1
    cases["stop"] = job("stage 2"), "gradient", 0
    cases["at most 1"] = job("stage 0", anomalies={**SKIPS, "at_most": 1}), "gradient", 0
    cases["before"] = job("stage 1", anomalies={**BACK, "before": 3}), "loss", 0
    cases["before, told"] = job("stage 1", train={"skip_steps": ["4-7", "8-11"]}), "", 0
    cases["lower"] = job("stage 1", anomalies={**SKIPS, "on_nan": "lower_rate", "rate_steps": 3}), "loss", 0
    (outcomes, *_) = run_ranks(2, run_all, cases)
    return {name: (cases[name][0], *outcome) for name, outcome in outcomes.items()}


def weights(job: Job) -> dict[str, Tensor]:
    return load_file(job.folder.path / "final" / "model.safetensors")


def assert_equal(one: Job, other: Job) -> None:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    differing = [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])]
    assert not differing
    losses = [
        {line["step"]: line["train/loss"] for line in read_metrics(job.folder.metrics) if "train/loss" in line}
        for job in (one, other)
    ]
    assert {step: value for step, value in losses[0].items() if step in losses[1]} == losses[1]


def found(job: Job) -> list[AnomalyFound]:
    return [event for event in read_events(job.folder.events) if isinstance(event, AnomalyFound)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_skipped_batch_leaves_what_one_leaves_that_was_never_computed(
    runs: dict[str, tuple[Job, str, int]], kind: str
) -> None:
    (ours, outcome, starts), (told, told_outcome, _) = runs[f"{kind}, skip"], runs[f"{kind}, told"]
    assert (outcome, told_outcome, starts) == ("finished", "finished", 1)
    assert [(event.step, event.what, event.action) for event in found(ours)] == [
        (NAN, "nan", "skip"),
        (SPIKE, "spike", "skip"),
    ]
    assert_equal(ours, told)


@pytest.mark.parametrize("case", ["stage 0", "stage 1", "stage 3"])
def test_after_a_rollback_or_a_kill_the_same_follows(runs: dict[str, tuple[Job, str, int]], case: str) -> None:
    told = runs[f"{case}, told"][0]
    for how, starts in (("rollback", 3), ("killed", 2)):
        ours, *outcome = runs[f"{case}, {how}"]
        assert outcome == ["finished", starts], how
        assert_equal(ours, told)
    events = found(runs[f"{case}, rollback"][0])
    assert [(event.step, event.skipped, event.checkpoint_step) for event in events] == [
        (NAN, (NAN,), EVERY),
        (SPIKE, (SPIKE,), 2 * EVERY),
    ]
