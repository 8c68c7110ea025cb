"""Where the time of profiled steps went, and what is told to be changed first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from shardyard.engine.profiling.advice import Settings, advise, settings_of
from shardyard.engine.profiling.breakdown import Event, breakdown, union, within, without
from shardyard.launch.run.prepare import prepare
from shardyard.planning.plan import World
from shardyard.tracking.run import profile
from shardyard.tracking.run.folder import RunFolder
from shardyard.tracking.run.profile import PARTS, Advice, Profile, RankTimes
from support.tiny import tiny_recipe, write_corpus

PLAIN = Settings(
    gpu=True,
    ranks=8,
    rows=8,
    micro_batch=8,
    accumulation=1,
    tokens_per_row=2048,
    stage=1,
    precision="bf16",
    bf16=True,
    offload_optimizer=False,
    offload_parameters=False,
    checkpointing=False,
    compile=True,
    readers=0,
)


def event(name: str, begin: float, end: float, cat: str = "user_annotation", tid: int = 1) -> Event:
    name = name if cat not in ("user_annotation", "gpu_user_annotation") or ":" in name else f"shardyard.{name}"
    return {"ph": "X", "cat": cat, "name": name, "ts": begin * 1e3, "dur": (end - begin) * 1e3, "tid": tid}


def milliseconds(events: list[Event]) -> dict[str, float]:
    found = breakdown(events)
    assert sum(found.parts.values()) == pytest.approx(found.step_seconds)
    return {part: round(1000 * seconds, 6) for part, seconds in found.parts.items() if seconds}


def test_intervals() -> None:
    assert union([(3, 5), (0, 1), (4, 7), (1, 1)]) == [(0, 1), (3, 7)]
    assert without([(0, 10)], [(1, 2), (4, 12)]) == [(0, 1), (2, 4)]
    assert without([(0, 2), (3, 5)], [(1, 4)]) == [(0, 1), (4, 5)]
    assert within([(0, 4), (6, 9)], [(2, 7)]) == [(2, 4), (6, 7)]


def test_a_step_on_a_cpu() -> None:
    """The reduction of 40 to 70 is hidden until 60 by the operation of the backward pass."""
    events = [event("step", 0, 100), event("data", 0, 10), event("forward", 10, 30), event("backward", 30, 70)]
    events += [event("aten::mm", 30, 60, "cpu_op"), event("gloo:all_reduce", 40, 70, tid=2)]
    events += [event("aten::mm", 60, 70, "cpu_op", tid=3), event("update", 70, 90), event("step", 200, 300)]
    expected = {"data": 5, "forward": 10, "backward": 15, "communication": 5, "optimizer": 10, "waiting": 55}
    assert milliseconds(events) == expected


def test_a_step_on_a_gpu() -> None:
    """The CPU is ahead: parts are those of the kernels, and a wait for data counts while the GPU has no work."""
    events = [event("step", 0, 100), event("data", 0, 20), event("forward", 20, 25), event("backward", 25, 30)]
    events += [event("forward", 30, 50, "gpu_user_annotation"), event("backward", 50, 90, "gpu_user_annotation")]
    events += [event("gemm", 30, 48, "kernel"), event("gemm", 50, 80, "kernel"), event("Memset", 5, 10, "gpu_memset")]
    events += [event("ncclDevKernel_AllReduce", 70, 85, "kernel")]
    expected = {"data": 15, "forward": 18, "backward": 30, "communication": 5, "metrics": 5, "waiting": 27}
    assert milliseconds(events) == expected


def test_a_trace_without_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="the trace has no step"):
        breakdown([event("forward", 0, 1)])


def rank(number: int = 0, **parts: float) -> RankTimes:
    return RankTimes(number, 1.0, {"waiting": 0.0, **parts})


@pytest.mark.parametrize(
    ("parts", "settings", "says", "sets"),
    [
        ({"data": 0.6, "forward": 0.2}, PLAIN, "wait for their batch for 60%", ("data.readers=2",)),
        ({"data": 0.6}, replace(PLAIN, readers=3), "More readers", ("data.readers=6",)),
        ({"communication": 0.5}, replace(PLAIN, stage=3), "gathers all parameters", ("zero.stage=1",)),
        ({"communication": 0.5}, replace(PLAIN, stage=2, accumulation=4), "each micro-batch", ("zero.stage=1",)),
        ({"communication": 0.5}, PLAIN, "A larger global batch", ()),
        ({"optimizer": 0.3}, replace(PLAIN, offload_optimizer=True), "CPU memory", ("zero.offload_optimizer=false",)),
        ({"optimizer": 0.3}, replace(PLAIN, stage=0), "only its part", ("zero.stage=1",)),
        ({"optimizer": 0.3}, PLAIN, "updates less often", ()),
        ({"hooks": 0.3}, PLAIN, "less often", ()),
        ({"waiting": 0.3}, replace(PLAIN, compile=False), "The GPU has no work", ("model.compile=true",)),
        ({"forward": 0.9}, replace(PLAIN, precision="fp32"), "in fp32", ("train.precision=bf16",)),
        ({"forward": 0.9}, replace(PLAIN, checkpointing=True), "twice", ("model.activation_checkpointing=false",)),
        ({"forward": 0.9}, replace(PLAIN, offload_parameters=True), "copied", ("zero.offload_parameters=false",)),
        (
            {"forward": 0.9},
            replace(PLAIN, micro_batch=1, accumulation=8, tokens_per_row=512),
            "only 512 tokens",
            ("train.micro_batch=2",),
        ),
        ({"forward": 0.9}, replace(PLAIN, compile=False), "fuses their small", ("model.compile=true",)),
    ],
)
def test_the_largest_part_is_named_first(
    parts: dict[str, float], settings: Settings, says: str, sets: tuple[str, ...]
) -> None:
    first = advise([rank(**parts)], settings)[0]
    assert says in first.text
    assert first.set == sets


def test_a_slow_rank_is_named_with_how_much_longer_it_computes() -> None:
    ranks = [rank(0, forward=0.4, communication=0.5), rank(1, forward=0.8, communication=0.1)]
    found = advise(ranks, PLAIN)
    assert ["Ranks wait" in found[0].text, "Rank 1 computes 33% longer" in found[1].text] == [True, True]
    # There is nothing to say about what takes little.
    assert advise([rank(forward=0.99, data=0.01)], PLAIN) == ()


def test_threads_that_make_rows_beside_the_step_are_named() -> None:
    """A filter in Python delays the step that it runs beside, although no step waits for its batch."""
    busy = RankTimes(0, 1.0, {"forward": 0.6, "waiting": 0.3}, reading_seconds=0.9)
    first = advise([busy], replace(PLAIN, gpu=False))[0]
    assert "Rows are made by threads of the training process, which compute for 90%" in first.text
    # A GPU that has work is not held up.
    assert advise([replace(busy, parts={"forward": 1.0})], PLAIN) == ()


def test_a_profile_is_kept_and_told(tmp_path: Path) -> None:
    recipe = tiny_recipe(write_corpus(tmp_path))
    plan = prepare(recipe, World(size=1, gpu=False))
    assert settings_of(recipe, plan).tokens_per_row == 32
    folder = RunFolder.create(tmp_path / "runs", "tiny", "", "", world_size=1, total_steps=1)
    assert (profile.requested(folder), profile.read(folder)) == (0, None)
    profile.request(folder, 3)
    assert profile.requested(folder) == 3
    made = Profile(4, 6, (rank(0, data=0.5), rank(1, data=0.7)), (Advice(0.6, "More.", ("data.readers=2",)),))
    profile.keep(folder, made)
    assert (profile.requested(folder), profile.read(folder)) == (0, made)
    told = profile.lines(made)
    assert told[0] == "profile of steps 4 to 6: 1000.0 ms a step, mean of 2 ranks"
    assert told[1].split()[:4] == ["60.0%", "600.0", "ms", "data"]
    assert told[-1] == "  1. More. Try -s data.readers=2"
    assert set(made.shares()) == set(PARTS)
    (profile.folder_of(folder) / "profile.json").write_text("{")
    assert profile.read(folder) is None
