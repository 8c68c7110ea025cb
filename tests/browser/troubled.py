"""A run that had all kinds of trouble and went on: what its page shows of it, beside a forecast and a profile."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

from browser.synthetic import PREDICTED, write_run
from shardyard.tracking.run import profile
from shardyard.tracking.run.events import (
    AnomalyDocuments,
    AnomalyFound,
    Attempt,
    AttemptFailed,
    CheckpointFailed,
    CheckpointMirrored,
    Event,
    Hang,
    MirrorFailed,
    Recovered,
    ReplicasDiffer,
    Straggler,
    WandbStatus,
    line_of,
)
from shardyard.tracking.run.folder import RunFolder

_STORE = "s3://training-of-the-whole-team/shardyard/gpt-troubled-20260101-000000-ab12"
_HANG = """The run hangs: rank 3 has made no progress for 41 s; ranks 0, 1, 2 wait for it.

rank  host       step  doing                 since  waits in
   0  10.12.0.4   212  backward               41 s  reduce_scatter 1841 (gradients, 12.6 MB)
   1  10.12.0.4   212  backward               41 s  reduce_scatter 1841 (gradients, 12.6 MB)
   2  10.12.0.5   212  backward               41 s  reduce_scatter 1841 (gradients, 12.6 MB)
   3  10.12.0.5   212  data                   41 s  -

Rank 3, main thread:
  File "/opt/venv/lib/python3.11/site-packages/datasets/utils/file_utils.py", line 1033, in read_with_retries
    out = read(*args, **kwargs)
Then: all ranks were ended; cluster.max_failures decides about the next attempt."""
_DOCUMENT = "fineweb-edu sample/10BT/000_00000.parquet:{} {}"
_EVENTS: tuple[Event, ...] = (
    WandbStatus(mode="offline", folder="wandb"),
    AnomalyFound(
        step=120,
        what="nan",
        signal="loss",
        value="nan",
        action="skip",
        count=1,
        at_most=10,
        first_row=1904,
        last_row=1919,
    ),
    AnomalyDocuments(
        step=120,
        rows=16,
        documents=23,
        named=tuple(_DOCUMENT.format(row, f"{row:012x}"[::-1]) for row in (1801, 17, 93_120)),
    ),
    AnomalyFound(
        step=203,
        what="spike",
        signal="grad_norm",
        value="913.22",
        usual=0.4123456,
        score=2212.4,
        action="rollback",
        count=2,
        at_most=10,
        first_row=3232,
        last_row=3247,
        skipped=(202, 203),
        checkpoint_step=200,
    ),
    AnomalyDocuments(step=203, problem="the data has changed since: 000_00000.parquet has another SHA-256"),
    CheckpointFailed(step=210, error="[Errno 28] No space left on device: '/scratch/runs/.step-00000210.partial'"),
    MirrorFailed(error=f"{_STORE}: AccessDenied when calling the PutObject operation", then="retry"),
    CheckpointMirrored(step=200, url=_STORE, seconds=3.21, bytes=26_792_295),
    Straggler(rank=3, host="10.12.0.5", part="data", factor=2.34, part_seconds=0.612, others_seconds=0.0213),
    Hang(
        step=212,
        seconds=41.2,
        ranks=(3,),
        text="rank 3 has made no progress for 41 s; ranks 0, 1, 2 wait for it",
        report="hangs/attempt-001-step-00000212/report.txt",
        table=_HANG,
    ),
    AttemptFailed(
        causes=[{"message": "the run hangs: rank 3 has made no progress for 41 s", "ranks": [3]}],
        ranks=(3,),
        then="retry",
        wait_seconds=0.0,
        failures=1,
        max_failures=20,
        checkpoint_step=200,
    ),
    Attempt(number=2, world_size=2, resumed_step=200),
    Recovered(
        step=201,
        seconds=14.73,
        phases={"noticed": 0.1, "ended": 0.42, "processes": 0.0, "process_group": 1.31, "checkpoint": 2.2},
        spares=True,
    ),
    ReplicasDiffer(
        step=240,
        ranks=(1,),
        compared_step=220,
        text="rank 1 has other weights than ranks 0, 2, 3: model.layers.7.mlp.down_proj.weight and 3 more",
    ),
)


def write_troubled(runs_dir: Path) -> RunFolder:
    """The run, two hours ago."""
    began = time.time() - 7200
    run = write_run(runs_dir, "gpt-troubled", steps=300, seed=77, began=began, info={"predicted": PREDICTED})
    lines = run.events.read_text(encoding="utf-8").splitlines()
    at = [began + 48 + index for index in range(len(_EVENTS))]
    lines += [json.dumps(line_of(replace(event, time=when))) for event, when in zip(_EVENTS, at, strict=True)]
    lines.sort(key=lambda line: float(json.loads(line)["time"]))
    run.events.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    parts = {"data": 0.05, "forward": 0.09, "backward": 0.17, "communication": 0.03, "optimizer": 0.04, "hooks": 0.002}
    slow = {**parts, "data": 0.11, "waiting": 0.018}
    advice = (
        profile.Advice(0.2, "Waiting for batches takes 20% of a step: make rows in more threads.", ("data.readers=4",)),
        profile.Advice(0.08, "Rank 1 takes 15% longer than the mean for the same work: look at its host with `top`."),
    )
    ranks = (profile.RankTimes(0, 0.382, parts), profile.RankTimes(1, 0.46, slow))
    profile.folder_of(run).mkdir()
    profile.keep(run, profile.Profile(4, 6, ranks, advice))
    return run
