"""The summary of a run, read from the ends of its files: fast even for long files."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from shardyard.tracking.files import MetricsTail
from shardyard.tracking.metrics import record
from shardyard.tracking.run.folder import RunFolder
from shardyard.tracking.run.holder import is_gone
from shardyard.tracking.run.reading import integer

_TAIL_BYTES = 64 * 1024


@dataclass(frozen=True)
class Summary:
    """The state and progress of a run. `age_seconds` counts from its creation.

    `state` is the state in run.json, or `lost` if that is `pending` or `running` but the driver process is gone (the
    machine went down, or the process was killed).
    """

    id: str
    name: str
    state: str
    step: int
    total_steps: int | None
    loss: float | None
    eval_loss: float | None
    world_size: int | None
    attempts: int
    created: str
    age_seconds: float | None
    path: str


def summarize(run: RunFolder) -> Summary:
    """Summarise run.json and the last lines of metrics.jsonl.

    Raises:
        RunFolderError: run.json cannot be read.
        OSError: metrics.jsonl exists but cannot be read.
    """
    info = run.info()
    metrics = newest_metrics(run)
    return Summary(
        id=run.id,
        name=info.name,
        state="lost" if is_gone(info, run.path) else info.state,
        step=int(metrics.get("step", info.step)),
        total_steps=info.total_steps,
        loss=_number(metrics.get(record.TRAIN_LOSS)),
        eval_loss=record.newest_eval_loss(metrics),
        world_size=info.world_size,
        attempts=info.attempts,
        created=info.created or "",
        age_seconds=_age_seconds(info.created),
        path=str(run.path),
    )


def newest_metrics(run: RunFolder) -> dict[str, float]:
    """The newest value of every metric, from the last lines; from the whole file only if these have no evaluation.

    Raises:
        OSError: metrics.jsonl exists but cannot be read.
    """
    size = run.metrics.stat().st_size if run.metrics.exists() else 0
    begin = max(0, size - _TAIL_BYTES)
    found: dict[str, float] = {}
    # The first line of a tail is truncated and skipped like any torn line.
    for line in MetricsTail(run.metrics, begin).new():
        found |= line
    if begin > 0 and record.newest_eval_loss(found) is None:
        merged: dict[str, float] = {}
        for line in MetricsTail(run.metrics).new():
            merged |= line
        return merged
    return found


def curve(run: RunFolder, metric: str = record.TRAIN_LOSS, most_bytes: int = 16 * 1024**2) -> list[tuple[int, float]]:
    """Step and value of a metric, by step; only from the last `most_bytes` of a longer file.

    Raises:
        OSError: metrics.jsonl exists but cannot be read.
    """
    size = run.metrics.stat().st_size if run.metrics.exists() else 0
    found: dict[int, float] = {}
    for line in MetricsTail(run.metrics, max(0, size - most_bytes)).new():
        step = integer(line.get("step"))
        if step is not None and metric in line:
            found[step] = float(line[metric])
    return sorted(found.items())


def _age_seconds(created: object) -> float | None:
    try:
        moment = datetime.fromisoformat(str(created))
    except ValueError:
        return None
    return max(0.0, (datetime.now(UTC) - moment).total_seconds())


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
