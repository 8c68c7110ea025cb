"""Events and waits as text, for terminals and pages.

Imports nothing large, because the entry points of waiting jobs use it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from shardyard.planning.shortage import shortage_in_words
from shardyard.tracking.run import reading
from shardyard.tracking.run.events import (
    AnomalyDocuments,
    AnomalyFound,
    Attempt,
    AttemptFailed,
    CheckpointFailed,
    CheckpointMirrored,
    CheckpointSaved,
    DataRead,
    EarlyStop,
    Evaluated,
    Event,
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
)
from shardyard.tracking.run.info import Place
from shardyard.tracking.run.waiting import Wait
from shardyard.units import format_bytes, format_seconds

# Metrics that are not shown: perplexity follows from the loss.
_NOT_SHOWN = frozenset({"perplexity"})
_MOST_METRICS = 6
_REASONS = 5
# What Python puts before the words of the system.
_ERRNO = re.compile(r"\[Errno \d+\] ")


def describe(event: Event) -> str:
    """A short text about an event; "" for events that are not shown."""
    match event:
        case Attempt():
            return _attempt(event)
        case CheckpointSaved():
            return f"checkpoint at step {event.step}{_size_and_time(event)}"
        case CheckpointFailed():
            return _not_saved(event)
        case CheckpointMirrored():
            return f"checkpoint at step {event.step} is in {event.url}{_size_and_time(event)}"
        case MirrorFailed():
            again = "; it is tried again" if event.then == "retry" else ""
            return f"the copy of checkpoints failed: {_ERRNO.sub('', event.error)}{again}"
        case Evaluated():
            loss = {} if event.loss is None else {"loss": event.loss}
            return f"evaluation at step {event.step}: {metrics_in_words({**loss, **event.metrics})}"
        case EarlyStop():
            return f"stopped early at step {event.step}: {event.metric} no longer improves on {number(event.best)}"
        case StageBegun():
            return f"stage {event.number} ({event.name}) begins after step {event.step}: {event.text}"
        case SourcesExhausted():
            return (
                f"the sources are exhausted after step {event.step} of {event.steps}: `epochs` and `tokens` of "
                "data.train allow no more"
            )
        case AttemptFailed():
            return f"failed{_causes(event)}{_what_follows(event)}"
        case DataRead():
            return _data_read(event)
        case WandbStatus():
            # The folder of an offline run is named at the end, with the command that uploads it.
            return f"W&B {event.mode}: {event.url}" if event.url else f"W&B {event.mode}"
        case Hang():
            return f"the run hangs: {event.text}{f'; {event.report}' if event.report else ''}"
        case Straggler():
            return _straggler(event)
        case AnomalyFound():
            return _anomaly(event)
        case AnomalyDocuments():
            return _documents(event)
        case ReplicasDiffer():
            return f"the weights of ranks differ at step {event.step}: {event.text}"
        case Finished():
            return f"finished at step {event.step}"
        case Placed():
            return places_in_words(event.placement)
        case Waiting():
            return wait_in_words(event.wait)
        case Recovered():
            return _recovered(event)
        case Notice() | Length():
            return event.text
        case OtherEvent():
            return event.text or event.kind
    raise AssertionError(f"no words for {event.kind}")


def _data_read(event: DataRead) -> str:
    rows = {
        "examples skipped": event.skipped,
        "rows removed by filters": sum(event.filtered.values()),
        "unusable rows left out": event.unusable,
        "rows without a target left out": event.without_target,
        "rows repaired": event.repaired,
    }
    others = {
        "streams without rows of their own, which read the whole source": event.empty_streams,
        "tokens cut off": event.cut,
        "retries": event.retries,
    }
    told = [f"{count} {word}" for word, count in rows.items() if count]
    # A row that is left out is counted each time it is read.
    passes = 1 + max((source.get("epochs", 0) for rank in event.ranks for source in rank.get("sources", ())), default=0)
    if told and passes > 1:
        told[-1] += f" in {passes} passes over the data"
    told += [f"{count} {word}" for word, count in others.items() if count]
    if event.full is not None:
        told.append(f"packed rows {event.full:.1%} full")
    reasons = sorted(event.filtered.items(), key=lambda found: (-found[1], found[0]))[:_REASONS]
    named_ = [*(f"{reason}: {count}" for reason, count in reasons), *event.named]
    named = f" ({'; '.join(named_)})" if named_ else ""
    return f"data: {', '.join(told)}{named}" if told else ""


def wait_in_words(wait: Wait) -> str:
    """A wait as text: `waiting for resources: needs 8 GPUs on 2 nodes; 4 free`."""
    if wait.reason == "queue" and wait.jobs_ahead is not None:
        jobs, are = ("job", "is") if wait.jobs_ahead == 1 else ("jobs", "are")
        return f"waiting: {wait.jobs_ahead} {jobs} submitted before it {are} ahead"
    if wait.shortage is not None:
        more = "; more were requested from its autoscaler" if wait.autoscaler else ""
        return f"waiting for resources: {shortage_in_words(wait.shortage)}{more}"
    if wait.reason == "taken":
        return "waiting for resources: they were taken in the meantime"
    if wait.reason == "no_answer" and wait.workers is not None:
        return f"waiting: {wait.workers} worker{'s' if wait.workers != 1 else ''} did not answer; placing all again"
    return wait.text or "waiting"


def metrics_in_words(measured: Mapping[str, object]) -> str:
    """`loss 0.4132, accuracy 0.8641`; tables such as the load of each expert are omitted."""
    found = {name: value for name, value in measured.items() if name not in _NOT_SHOWN and "/" not in name}
    told = [f"{name.replace('_', ' ')} {number(value)}" for name, value in found.items() if number(value)]
    return ", ".join(told[:_MOST_METRICS])


def number(value: object, style: str = ".4f") -> str:
    """A metric as text; "" if it is missing."""
    return format(value, style) if isinstance(value, int | float) else "" if value is None else str(value)


def places_in_words(places: Sequence[Place]) -> str:
    """`4 ranks on 2 nodes: 10.0.0.1 has 0–1, 10.0.0.2 has 2–3`."""
    ranks = [reading.integers(place.get("ranks")) or () for place in places]
    each = ", ".join(f"{place.get('address')} has {_range(found)}" for place, found in zip(places, ranks, strict=True))
    return f"{sum(map(len, ranks))} ranks on {len(places)} nodes: {each}"


def _range(ranks: Sequence[int]) -> str:
    if ranks and len(ranks) == ranks[-1] - ranks[0] + 1:
        return str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]}–{ranks[-1]}"
    return ", ".join(map(str, ranks)) or "none"


def _attempt(event: Attempt) -> str:
    ranks = event.world_size or 1
    size = f"on {ranks} rank{'s' if ranks != 1 else ''}"
    source = f" from step {event.resumed_step}" if event.resumed_step else ""
    if event.number > 1:
        return f"restart: attempt {event.number} {size}{source or ' from the beginning'}"
    return f"training {size}{source}"


def _anomaly(event: AnomalyFound) -> str:
    """`step 1203: the loss is 9.12, 14.2 deviations above 2.31; its batch is skipped (2 of at most 10)`."""
    name = "gradient norm" if event.signal == "grad_norm" else event.signal
    high = f", usually {number(event.usual, '.4g')}" if event.usual is not None else ""
    if high and event.score is not None:  # none where the steps before were all alike
        high = f", {number(event.score, '.1f')} deviations above {number(event.usual, '.4g')}"
    found = f"step {event.step}: the {name} is {event.value}{high}"
    if event.action == "stop":
        return f"{found}; the run ends"
    back = f"step {event.checkpoint_step}" if event.checkpoint_step else "the beginning"
    skipped = f"{', '.join(map(str, event.skipped))}" if event.skipped else str(event.step)
    done = {
        "skip": "its batch is skipped",
        "lower_rate": "its batch is skipped, and the learning rate lowered",
        "rollback": f"back to {back}, then the batches of {skipped} are skipped",
    }.get(event.action, event.action)
    rows = f"; rows {event.first_row} to {event.last_row}" if event.last_row is not None else ""
    return f"{found}; {done} ({event.count} of at most {event.at_most}{rows})"


def _documents(event: AnomalyDocuments) -> str:
    """`documents of step 1203: c4 part-3.jsonl:18 5d41402abc4b, … (and 12 more)`."""
    if not event.named:
        return f"documents of step {event.step} are not known: {event.problem or 'it has none'}"
    more = (event.documents or 0) - len(event.named)
    return f"documents of step {event.step}: {', '.join(event.named)}{f' (and {more} more)' if more > 0 else ''}"


def _straggler(event: Straggler) -> str:
    """`rank 1 on h2 is slow: 2.3 times the others' own time, mostly in data (0.61 s a step, others 0.02 s)`."""
    factor = f"{event.factor:.1f} times the others' own time" if event.factor is not None else "slower than the others"
    seconds = ""
    if event.part_seconds is not None and event.others_seconds is not None:
        seconds = f" ({event.part_seconds:.3g} s a step, others {event.others_seconds:.3g} s)"
    return f"rank {event.rank} on {event.host} is slow: {factor}, mostly in {event.part}{seconds}"


def _causes(event: AttemptFailed) -> str:
    causes = [(_ranks(cause["ranks"]), cause["message"]) for cause in event.causes]
    if len(causes) == 1:
        (ranks, message), *_ = causes
        return f" on {ranks}: {message}" if ranks else f": {message}"
    return "".join(f"\n{ranks}: {message}" if ranks else f"\n{message}" for ranks, message in causes)


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}" if ranks else ""


def _what_follows(event: AttemptFailed) -> str:
    step = event.checkpoint_step
    if event.then == "stopped":
        saved = f"at step {step}" if step else "before its first checkpoint"
        return f"\nno checkpoint could be written: the run is {event.outcome} {saved}"
    if event.then == "retry":
        wait = event.wait_seconds if event.wait_seconds is not None and math.isfinite(event.wait_seconds) else 0.0
        source = f"the checkpoint of step {step}" if step else "the start"
        counted = f"failure {event.failures} of at most {event.max_failures} without a new checkpoint"
        when = f"in {format_seconds(wait)}" if wait else "at once"
        return f"\nstarting again {when} from {source} ({counted})"
    return ""


def _recovered(event: Recovered) -> str:
    phases = ", ".join(f"{name.replace('_', ' ')} {format_seconds(value)}" for name, value in event.phases.items())
    how = " by spare processes" if event.spares else ""
    seconds = event.seconds if event.seconds is not None and math.isfinite(event.seconds) else 0.0
    return f"recovered{how}: step {event.step} after {format_seconds(seconds)}{f' ({phases})' if phases else ''}"


def _not_saved(event: CheckpointFailed) -> str:
    """The error names the step itself where the checkpoint was refused as a whole."""
    text = _ERRNO.sub("", event.error)
    return text if text.startswith("the checkpoint of step ") else f"checkpoint at step {event.step} failed: {text}"


def _size_and_time(event: CheckpointSaved | CheckpointMirrored) -> str:
    parts = [] if event.bytes is None else [format_bytes(event.bytes)]
    parts += [format_seconds(event.seconds)] if event.seconds is not None and math.isfinite(event.seconds) else []
    return f" ({', '.join(parts)})" if parts else ""
