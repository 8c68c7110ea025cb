"""The wait of a run before it trains, as data: `waiting` in run.json and in the event of that name.

Imports only the standard library, because the entry points of waiting jobs import it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from shardyard.planning.shortage import Constraint, Resource, Shortage
from shardyard.tracking.run import reading

# queue: jobs submitted earlier. resources: not enough are free. placement: enough are free, but not where the workers
# could be placed. taken: another job was faster. no_answer: workers have their resources, but their processes do not
# answer. unknown: an earlier version wrote only a sentence.
Reason = Literal["queue", "resources", "placement", "taken", "no_answer", "unknown"]
_REASONS: tuple[Reason, ...] = get_args(Reason)


@dataclass(frozen=True)
class Wait:
    """The reason why a run waits.

    jobs_ahead: in the queue. shortage: of resources or places. autoscaler: whether more nodes are requested.
    workers: that do not answer.
    text: the sentence of an earlier version, which recorded nothing else.
    """

    reason: Reason
    jobs_ahead: int | None = None
    shortage: Shortage | None = None
    autoscaler: bool = False
    workers: int | None = None
    text: str = ""

    @classmethod
    def for_resources(cls, shortage: Shortage, *, autoscaler: bool = False) -> Wait:
        """A wait because the run currently does not fit on the cluster."""
        reason: Reason = "resources" if shortage.workers_held is None else "placement"
        return cls(reason, shortage=shortage, autoscaler=autoscaler)

    @classmethod
    def from_json(cls, value: object) -> Wait | None:
        """The inverse of `as_json`; also reads the sentence of earlier versions; None for anything else."""
        if isinstance(value, str) and value:
            return cls("unknown", text=value)
        if not isinstance(value, Mapping):
            return None
        return cls(
            reason=next((reason for reason in _REASONS if reason == value.get("reason")), "unknown"),
            jobs_ahead=reading.integer(value.get("jobs_ahead")),
            shortage=_shortage(value.get("shortage")),
            autoscaler=value.get("autoscaler") is True,
            workers=reading.integer(value.get("workers")),
            text=reading.text(value.get("text")) or "",
        )

    def as_json(self) -> dict[str, object]:
        """As JSON, without unknown values."""
        shortage = self.shortage
        kept = None if shortage is None else _filled({**asdict(shortage), "worker": dict(shortage.worker) or None})
        return _filled({**asdict(self), "shortage": kept})


def _filled(values: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in values.items() if value is not None and value is not False and value != ""}


def _shortage(value: object) -> Shortage | None:
    if not isinstance(value, Mapping) or value.get("resource") not in get_args(Resource):
        return None
    counts = {name: reading.integer(value.get(name)) for name in ("nodes", "workers", "workers_held", "limit")}
    worker = value.get("worker")
    # Runs from before the parallel axes had groups of experts alone.
    constraint: Constraint | None = "group" if value.get("constraint") == "experts" else None
    return Shortage(
        resource=value["resource"],
        needed=reading.finite(value.get("needed")) or 0.0,
        available=reading.finite(value.get("available")),
        of="cluster" if value.get("of") == "cluster" else "free",
        constraint=value["constraint"] if value.get("constraint") in get_args(Constraint) else constraint,
        worker=_worker(worker) if isinstance(worker, Mapping) else (),
        **counts,
    )


def _worker(value: Mapping[str, object]) -> tuple[tuple[Resource, float], ...]:
    amounts = ((resource, reading.finite(value.get(resource))) for resource in get_args(Resource))
    return tuple((resource, amount) for resource, amount in amounts if amount is not None)
