"""Progress records in the log of a job, for listing jobs whose run folder cannot be read.

Each line is `@progress ` and JSON. `shardyard logs` omits these lines. Only the standard library is imported: the entry
point of a job writes them while the job waits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from shardyard.tracking.files import decode, encode
from shardyard.tracking.run import reading
from shardyard.tracking.run.waiting import Wait

# Version of the records; incremented when an existing key changes its meaning.
FORMAT = 1
_MARK = "@progress "


@dataclass(frozen=True)
class JobProgress:
    """A progress record. step: the last one, 0 before the first. loss: at that step. waiting: reason of the wait."""

    step: int = 0
    total_steps: int | None = None
    loss: float | None = None
    waiting: Wait | None = None

    def as_json(self) -> dict[str, object]:
        """The known values."""
        waiting = None if self.waiting is None else self.waiting.as_json()
        known = {"step": self.step, "total_steps": self.total_steps, "loss": self.loss, "waiting": waiting}
        return {name: value for name, value in known.items() if value is not None}

    def to_line(self) -> str:
        """The record as a line of the log, without newline."""
        return _MARK + encode({"format": FORMAT, **self.as_json()})


def newest_progress(log: str) -> JobProgress | None:
    """The last record in a log; None if there is none that this version can read."""
    for line in reversed(log.splitlines()):
        if is_record(line):
            return _read(line.removeprefix(_MARK))
    return None


def is_record(line: str) -> bool:
    """Whether a line of a log is a progress record."""
    return line.startswith(_MARK)


def without_records(pieces: Iterable[str]) -> Iterator[str]:
    """The log without the progress records, incrementally. Pieces may end within a line."""
    held, begun = "", False
    for piece in pieces:
        *lines, rest = (held + piece).split("\n")
        shown = ""
        for line in lines:
            if begun or not is_record(line):
                shown += f"{line}\n"
            begun = False
        # The beginning of a line is buffered only while it may be a record.
        begun = begun or not (_MARK.startswith(rest) or is_record(rest))
        shown, held = (shown + rest, "") if begun else (shown, rest)
        if shown:
            yield shown
    if held and not is_record(held):
        yield held


def _read(text: str) -> JobProgress | None:
    try:
        record = decode(text)
    except ValueError:
        return None
    if not isinstance(record, dict) or (reading.integer(record.get("format")) or 0) > FORMAT:
        return None
    return JobProgress(
        step=reading.integer(record.get("step")) or 0,
        total_steps=reading.integer(record.get("total_steps")),
        loss=reading.number(record.get("loss")),
        waiting=Wait.from_json(record.get("waiting")),
    )
