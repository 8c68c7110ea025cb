"""The report of a hang: one text, and a folder in the run folder with the stacks of every rank.

Imports only the standard library, because `shardyard runs` and the dashboard read reports.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from shardyard.tracking.files import write_atomically
from shardyard.tracking.watch.judge import Verdict, Watched
from shardyard.tracking.watch.look import Collective, Evidence, Look

FOLDER = "hangs"
REPORT = "report.txt"
STATES = {
    "R": "running",
    "S": "sleeping",
    "D": "in the kernel",
    "T": "stopped",
    "t": "traced",
    "Z": "ended",
    "I": "idle",
}
COLUMNS = ("rank", "host", "pid", "process", "step", "phase", "for", "waits in", "innermost line")
_FRAME = re.compile(r'^\s*File "(?P<file>[^"]*)", line (?P<line>\d+) in (?P<name>.+)$')
_LIBRARY = re.compile(r"/(site|dist)-packages/|/lib/python3|^<")
_OURS = re.compile(r"/shardyard/(?!launch/ray/)")
# Every wait in a collective goes through it.
_WATCHING = "/shardyard/engine/watch/collectives.py"
_MOST_ROWS = 64
_UNFINISHED = ("scheduled", "started")


def innermost(stacks: str, main_thread: int) -> str:
    """`step.py:121 start_step`: the innermost line of the training thread that is no library's, of stacks as Python's
    faulthandler writes them; "" without stacks."""
    matched = [found for line in _thread(stacks, main_thread) if (found := _FRAME.match(line))]
    frames = [found for found in matched if not found["file"].endswith(_WATCHING)]
    own = [found for found in frames if _OURS.search(found["file"]) or not _LIBRARY.search(found["file"])]
    # The actor of a rank calls everything else, so it says nothing.
    chosen = next(iter(own), next(iter(frames), None))
    return "" if chosen is None else f"{Path(chosen['file']).name}:{chosen['line']} {chosen['name']}"


def _thread(stacks: str, main_thread: int) -> list[str]:
    """The lines of the training thread; of all threads if it is not among them."""
    blocks = re.split(r"^(?=(?:Current thread|Thread) 0x)", stacks, flags=re.MULTILINE)
    named = re.compile(rf"(?:Current thread|Thread) 0x0*{main_thread:x}\b")
    return next((block.splitlines() for block in reversed(blocks) if named.match(block)), stacks.splitlines())


def recorded(trace: str) -> str:
    """The first collective of GPUs that torch's flight recorder has as unfinished: `nccl:all_reduce #12`; "" if it has
    none. Those of gloo stay unfinished in it for ever, and the beat has them."""
    try:
        entries = json.loads(trace)["entries"]
    except (ValueError, KeyError, TypeError):
        return ""
    for entry in entries if isinstance(entries, list) else ():
        if not isinstance(entry, Mapping) or entry.get("state") not in _UNFINISHED:
            continue
        if (name := str(entry.get("profiling_name"))).startswith("nccl:"):
            return f"{name} #{entry.get('collective_seq_id')}"
    return ""


def headline(verdict: Verdict) -> str:
    """One sentence, without a full stop."""
    return f"no progress for {verdict.seconds:.0f} s (limit {verdict.limit:.0f} s): {verdict.why}"


def text_of(
    verdict: Verdict, ranks: Sequence[Watched], evidence: Mapping[int, Evidence], then: str, where: Path
) -> str:
    """The whole report. then: what is done about it. where: the folder with the stacks."""
    looks = [one.look for one in ranks]
    chosen = _chosen(looks, verdict)
    rows = [COLUMNS, *(_row(look, evidence.get(look.rank)) for look in chosen)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    left = f"\n… and {len(looks) - len(chosen)} ranks that wait like these" if len(chosen) < len(looks) else ""
    missing = ", ".join(map(str, verdict.ranks))
    now = datetime.now(UTC).isoformat(timespec="seconds")
    begun = datetime.fromtimestamp(datetime.now(UTC).timestamp() - verdict.seconds, UTC).isoformat(timespec="seconds")
    return (
        "\n".join(
            [
                f"The run hangs: {headline(verdict)}.",
                f"since {begun}, noticed {now}",
                f"missing: rank {missing}" if len(verdict.ranks) == 1 else f"missing: ranks {missing}",
                "",
                *table,
            ]
        )
        + f"{left}\n\nStacks of all threads: {where}\nDone: {then}.\n"
    )


def _chosen(looks: Sequence[Look], verdict: Verdict) -> list[Look]:
    """All ranks, or of many those that are missing first."""
    if len(looks) <= _MOST_ROWS:
        return list(looks)
    first = [look for look in looks if look.rank in verdict.ranks]
    return [*first, *(look for look in looks if look.rank not in verdict.ranks)][:_MOST_ROWS]


def _row(look: Look, evidence: Evidence | None) -> tuple[str, ...]:
    waits = look.waiting
    seen = recorded(evidence.trace) if evidence is not None else ""
    place = _place(waits) if waits is not None else seen
    state = STATES.get(look.state, look.state) + (f" ({look.waits_for})" if look.waits_for else "")
    line = innermost(evidence.stacks, look.main_thread) if evidence is not None else ""
    return (
        str(look.rank),
        look.host,
        str(look.pid),
        state,
        str(look.step),
        look.phase,
        f"{look.age_seconds:.1f} s",
        place or "-",
        line or "no stack: it did not answer",
    )


def _place(waits: Collective) -> str:
    return f"{waits.in_words()}, group {waits.group}"


def keep(
    run: Path, name: str, text: str, verdict: Verdict, ranks: Sequence[Watched], evidence: Mapping[int, Evidence]
) -> Path:
    """Write a report into the run folder; returns its folder.

    Raises:
        OSError: it cannot be written.
    """
    folder = run / FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    for rank, found in evidence.items():
        if found.stacks:
            (folder / f"rank-{rank}.stacks.txt").write_text(found.stacks, encoding="utf-8")
        if found.trace:
            (folder / f"rank-{rank}.collectives.json").write_text(found.trace, encoding="utf-8")
    looks = [asdict(one.look) for one in ranks]
    found_json = {"format": 1, "verdict": asdict(verdict), "ranks": looks}
    write_atomically(folder / "report.json", json.dumps(found_json, indent=1) + "\n")
    write_atomically(folder / REPORT, text)
    return folder


def newest(run: Path) -> tuple[Path, str] | None:
    """The newest report of a run with its path; None if it has none that can be read."""
    found = sorted((run / FOLDER).glob(f"*/{REPORT}"), key=lambda path: path.parent.name)
    for path in reversed(found):
        try:
            return path, path.read_text(encoding="utf-8")
        except (OSError, ValueError):
            continue
    return None
