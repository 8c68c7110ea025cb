"""events.jsonl as types: one registry, one writer, one reader, lines of every version, and words for each."""

from __future__ import annotations

import ast
import json
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from shardyard.launch.describe import describe
from shardyard.planning.shortage import Shortage
from shardyard.tracking.run import events
from shardyard.tracking.run.events import (
    EVENTS,
    AnomalyDocuments,
    AnomalyFound,
    Attempt,
    AttemptFailed,
    Cause,
    CheckpointFailed,
    CheckpointMirrored,
    CheckpointSaved,
    DataRead,
    EarlyStop,
    Evaluated,
    Event,
    EventTail,
    EventWriter,
    Finished,
    Hang,
    Length,
    MirrorFailed,
    Notice,
    OtherEvent,
    Placed,
    Recovered,
    ReplicasDiffer,
    SourcesExhausted,
    StageBegun,
    Straggler,
    Waiting,
    WandbStatus,
    event_of,
    line_of,
    read_events,
    write_event,
)
from shardyard.tracking.run.waiting import Wait
from support.module_graph import PACKAGE

SHORT = Shortage("gpus", 8.0, 2, 8.0, "cluster", 8, 4, "group", 8, (("gpus", 1.0), ("cpus", 4.0)))
# Kind → severity, and an event with all of its fields.
ONE_OF_EACH: dict[str, tuple[str, Event]] = {
    "attempt": ("info", Attempt(time=1.0, number=2, world_size=4, resumed_step=20)),
    "length": ("notice", Length(time=1.0, steps=400, text="4.5 minutes hold 400 of 500 steps, at 0.7 s each")),
    "waiting": ("notice", Waiting(time=1.0, wait=Wait("placement", shortage=SHORT, autoscaler=True))),
    "placement": (
        "info",
        Placed(
            time=1.0, placement=[{"address": "10.0.0.1", "ranks": [0, 1]}], network={"10.0.0.1": ["interface eth0"]}
        ),
    ),
    "evaluation": ("info", Evaluated(time=1.0, step=5, loss=2.5, metrics={"accuracy": 0.5}, rows=8, seconds=0.25)),
    "checkpoint": ("info", CheckpointSaved(time=1.0, step=5, path="step-00000005", seconds=0.25, bytes=2048)),
    "stage": ("notice", StageBegun(time=1.0, step=5, number=2, name="anneal", text="64 rows a step")),
    "exhausted": ("notice", SourcesExhausted(time=1.0, step=5, steps=9)),
    "checkpoint_failed": ("warning", CheckpointFailed(time=1.0, step=5, error="disk full")),
    "checkpoint_mirrored": ("info", CheckpointMirrored(time=1.0, step=5, url="s3://b/run", seconds=2.0, bytes=7)),
    "mirror_failed": ("warning", MirrorFailed(time=1.0, error="s3://b/run: access is denied", then="retry")),
    "early_stop": ("info", EarlyStop(time=1.0, step=5, metric="eval/validation/loss", best=2.5, best_step=3)),
    "data": (
        "notice",
        DataRead(
            time=1.0,
            skipped=1,
            retries=2,
            cut=3,
            filtered={"c4: lorem ipsum": 2},
            unusable=4,
            without_target=5,
            repaired=6,
            named=("a.jsonl, row 1: no target",),
            ranks=[{"retries": 2, "cut": 3, "sources": []}],
        ),
    ),
    "wandb": ("info", WandbStatus(time=1.0, mode="online", url="https://w.example/r/1", folder=None)),
    "finished": ("info", Finished(time=1.0, step=5, path="final")),
    "failure": (
        "error",
        AttemptFailed(
            time=1.0,
            causes=[{"message": "killed", "ranks": [1]}],
            ranks=(1,),
            then="retry",
            wait_seconds=2.0,
            failures=2,
            max_failures=3,
            checkpoint_step=40,
            outcome=None,
        ),
    ),
    "recovered": ("notice", Recovered(time=1.0, step=21, seconds=4.5, phases={"imports": 2.5}, spares=True)),
    "hang": (
        "error",
        Hang(
            time=1.0, step=5, seconds=12.5, ranks=(1,), text="rank 1 is stopped", report="hangs/x/report.txt", table="t"
        ),
    ),
    "straggler": (
        "warning",
        Straggler(time=1.0, rank=1, host="h1", part="data", factor=2.5, part_seconds=0.5, others_seconds=0.1),
    ),
    "anomaly": (
        "warning",
        AnomalyFound(
            time=1.0,
            step=7,
            what="spike",
            signal="loss",
            value="9.5",
            usual=2.25,
            score=14.5,
            action="rollback",
            count=2,
            at_most=10,
            first_row=48,
            last_row=55,
            skipped=(6, 7),
            checkpoint_step=5,
        ),
    ),
    "anomaly_documents": (
        "notice",
        AnomalyDocuments(time=1.0, step=7, rows=8, documents=20, named=("c4 a.jsonl:3 0123456789ab",), problem=""),
    ),
    "replicas_differ": (
        "error",
        ReplicasDiffer(time=1.0, step=7, ranks=(1,), compared_step=4, text="rank 1 differs from the 3 others"),
    ),
    "notice": ("notice", Notice(time=1.0, text="starting 2 Ray workers")),
}
# Lines as earlier versions wrote them, and as they are read.
BEFORE: list[tuple[dict[str, Any], Event, str]] = [
    (
        {"kind": "waiting", "time": 1.0, "text": "waiting for resources: needs 8 GPUs on 2 nodes; 4 free"},
        Waiting(time=1.0, wait=Wait("unknown", text="waiting for resources: needs 8 GPUs on 2 nodes; 4 free")),
        "waiting for resources: needs 8 GPUs on 2 nodes; 4 free",
    ),
    (
        {"kind": "wandb", "time": 1.0, "text": "W&B online: https://w.example/r/2"},
        WandbStatus(time=1.0, mode="online", url="https://w.example/r/2"),
        "W&B online: https://w.example/r/2",
    ),
    (
        {"kind": "wandb", "time": 1.0, "text": "W&B offline: /runs/a/wandb", "mode": "offline", "url": None},
        WandbStatus(time=1.0, mode="offline"),
        "W&B offline",
    ),
    (
        {
            "kind": "placement",
            "time": 1.0,
            "text": "2 ranks on 2 nodes: a has 0, a has 1",
            "network": {},
            "placement": [{"address": "a", "ranks": [0]}, {"address": "a", "ranks": [1]}],
        },
        Placed(time=1.0, placement=[{"address": "a", "ranks": [0]}, {"address": "a", "ranks": [1]}]),
        "2 ranks on 2 nodes: a has 0, a has 1",
    ),
    (
        {"kind": "evaluation", "time": 1.0, "step": 2, "loss": 1.0, "perplexity": 2.7, "rows": 4, "seconds": 0.1},
        Evaluated(time=1.0, step=2, loss=1.0, metrics={"perplexity": 2.7}, rows=4, seconds=0.1),
        "evaluation at step 2: loss 1.0000",
    ),
    (
        {"kind": "failure", "time": 1.0, "message": "rank 1: killed", "ranks": [1]},
        AttemptFailed(time=1.0, causes=[{"message": "rank 1: killed", "ranks": [1]}], ranks=(1,)),
        "failed on rank 1: rank 1: killed",
    ),
    (
        {"kind": "moon_phase", "time": 1.0, "text": "half", "percent": 50},
        OtherEvent(name="moon_phase", time=1.0, text="half", fields={"percent": 50}),
        "half",
    ),
]


def test_every_kind_is_in_the_registry_with_its_fields_and_severity(tmp_path: Path) -> None:
    assert set(ONE_OF_EACH) == set(EVENTS)
    path = tmp_path / "events.jsonl"
    for kind, (severity, event) in ONE_OF_EACH.items():
        assert (event.kind, event.severity, EVENTS[kind]) == (kind, severity, type(event))
        write_event(path, event)
    assert read_events(path) == [event for _, event in ONE_OF_EACH.values()]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line, (_, event) in zip(lines, ONE_OF_EACH.values(), strict=True):
        own = {one.name for one in fields(event)} - {"time", "metrics"}
        assert own | {"kind", "time"} <= line.keys()
    assert all(describe(event) for _, event in ONE_OF_EACH.values())


def test_a_notice_of_a_loss_is_a_warning(tmp_path: Path) -> None:
    write_event(tmp_path / "events.jsonl", Notice(time=1.0, text="the disk is full", warns=True))
    (found,) = read_events(tmp_path / "events.jsonl")
    assert (found.severity, describe(found)) == ("warning", "the disk is full")
    assert event_of({"kind": "notice", "text": "of an earlier version"}).severity == "notice"


def _subclasses() -> set[str]:
    return {one.__name__ for one in Event.__subclasses__()}


def test_all_events_of_the_package_are_written_and_read_through_the_registry() -> None:
    """A call of `event` or `write_event` gets an event of a class of the registry, made on the spot."""
    assert _subclasses() == {one.__name__ for one in EVENTS.values()} | {"OtherEvent"}
    written: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        name, tree = str(path.relative_to(PACKAGE)), ast.parse(path.read_text(encoding="utf-8"))
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        written |= {node.func.id for node in calls if isinstance(node.func, ast.Name)} & _subclasses()
        for call in calls:
            function = ast.unparse(call.func)
            if name != "tracking/run/events.py" and function.split(".")[-1] in (
                "JsonlWriter",
                "JsonlTail",
                "read_jsonl",
            ):
                assert "events" not in ast.unparse(call), f"{name}:{call.lineno} goes around the registry"
    assert written == _subclasses()


def test_the_systems_words_are_told_without_its_number() -> None:
    full = "[Errno 28] No space left on device"
    assert describe(CheckpointFailed(step=4, error=full)) == "checkpoint at step 4 failed: No space left on device"
    assert describe(MirrorFailed(error=full, then="end")) == "the copy of checkpoints failed: No space left on device"


def test_anomalies_are_told_with_what_follows() -> None:
    spike = ONE_OF_EACH["anomaly"][1]
    assert isinstance(spike, AnomalyFound)
    assert describe(spike) == (
        "step 7: the loss is 9.5, 14.5 deviations above 2.25; back to step 5, then the batches of 6, 7 are skipped "
        "(2 of at most 10; rows 48 to 55)"
    )
    # The steps before were all alike, so no number of deviations is finite.
    assert describe(replace(spike, score=None)).startswith("step 7: the loss is 9.5, usually 2.25; back to step 5")
    nan = AnomalyFound(step=7, what="nan", signal="grad_norm", value="nan", action="skip", count=1, at_most=10)
    assert describe(nan) == "step 7: the gradient norm is nan; its batch is skipped (1 of at most 10)"
    assert describe(replace(nan, action="stop")) == "step 7: the gradient norm is nan; the run ends"
    assert describe(ONE_OF_EACH["anomaly_documents"][1]) == (
        "documents of step 7: c4 a.jsonl:3 0123456789ab (and 19 more)"
    )
    assert describe(AnomalyDocuments(step=7, problem="gone")) == "documents of step 7 are not known: gone"


@pytest.mark.parametrize(("line", "event", "words"), BEFORE)
def test_lines_of_before_are_read(line: dict[str, Any], event: Event, words: str) -> None:
    assert event_of(line) == event
    assert describe(event) == words


def test_the_time_of_writing_is_added_and_events_of_others_are_kept(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path / "events.jsonl")
    writer.write(Notice(text="a"))
    writer.write(OtherEvent(name="moon_phase", fields={"percent": math.inf}))
    writer.close()
    tail = EventTail(tmp_path / "events.jsonl")
    first, second = tail.new()
    assert tail.new() == []
    assert first.time is not None
    assert first.time > 1.6e9
    assert (second.kind, line_of(second)["percent"]) == ("moon_phase", math.inf)
    assert read_events(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("kind", [*EVENTS, "other", 7, None])
@pytest.mark.parametrize("value", [None, "x", [], {}, True, 1e308, -1, math.nan, [{}], {"a": 1}, [None, "x"]])
def test_a_line_of_any_content_is_read_and_has_words(kind: object, value: object) -> None:
    names = {one.name for event in EVENTS.values() for one in fields(event)} | {"wait", "text"}
    shortage = {"resource": "cpus", "needed": value, "available": value, "worker": {"gpus": value}, "workers": value}
    for line in ({"kind": kind, **dict.fromkeys(names, value)}, {"kind": kind, "wait": {"shortage": shortage}}):
        describe(event_of(line))
        line_of(event_of(line))


def test_a_failure_says_its_causes_and_what_follows() -> None:
    lost: Cause = {"message": "lost", "ranks": [0, 2]}
    late: Cause = {"message": "late", "ranks": [1]}
    assert describe(AttemptFailed(causes=[lost])) == "failed on ranks 0, 2: lost"
    assert describe(AttemptFailed(causes=[{"message": "no workers", "ranks": []}])) == "failed: no workers"
    assert describe(AttemptFailed(causes=[lost, late])) == "failed\nranks 0, 2: lost\nrank 1: late"
    retry = AttemptFailed(causes=[late], then="retry", wait_seconds=2.0, failures=2, max_failures=3, checkpoint_step=40)
    assert describe(retry) == (
        "failed on rank 1: late\nstarting again in 2.0 s from the checkpoint of step 40 "
        "(failure 2 of at most 3 without a new checkpoint)"
    )
    assert "from the start (failure 2 of" in describe(replace(retry, checkpoint_step=0))
    stopped = AttemptFailed(causes=[late], then="stopped", outcome="preempted", checkpoint_step=5)
    assert describe(stopped).endswith("\nno checkpoint could be written: the run is preempted at step 5")
    assert describe(replace(stopped, checkpoint_step=0)).endswith("preempted before its first checkpoint")


def test_a_wait_is_what_was_written() -> None:
    waits = [
        Wait("queue", jobs_ahead=2),
        Wait("taken"),
        Wait("no_answer", workers=3),
        Wait("resources", shortage=Shortage("memory", 2.0**31, 1, 0.0)),
    ]
    for wait in [*waits, Wait("placement", shortage=SHORT)]:
        assert Wait.from_json(json.loads(json.dumps(wait.as_json()))) == wait
    before = json.loads(json.dumps(Wait("placement", shortage=SHORT).as_json()).replace('"group"', '"experts"'))
    assert Wait.from_json(before) == Wait("placement", shortage=SHORT), "a run from before the parallel axes"
    assert waits[0].as_json() == {"reason": "queue", "jobs_ahead": 2}
    assert waits[3].as_json()["shortage"] == {
        "resource": "memory",
        "needed": 2.0**31,
        "nodes": 1,
        "available": 0.0,
        "of": "free",
    }
    assert Wait.from_json({"reason": "moon"}) == Wait("unknown")
    assert Wait.from_json(["queue"]) is None
    assert events.Waiting().wait == Wait("unknown")
