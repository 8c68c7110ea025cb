"""The ledger on disk: what is written is read, whatever ends a writer, and it stays small."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from shardyard.data.ledger.record import MAGIC, ROWS_BETWEEN, Header, LedgerWriter, read_ledger

STREAMS = 64


def header(step: int = 0, batch: int = 512) -> Header:
    return Header(step=step, streams=STREAMS, seed=7, global_batch=batch, readers=2, data={"shuffle_window": 256})


def states(step: int, rank: int, ranks: int = 2) -> dict[str, Any]:
    """States as those of a run with 8 rows of each stream a step, of about three documents each."""
    found = {}
    for stream in range(rank, STREAMS, ranks):
        document = step * 8 * 3 + (step * 7919 + stream * 104729) % 23
        cursor = {"state": {"file": 0, "before": 0}, "example": document // 256 * 256 * STREAMS + stream, "row": 0}
        found[str(stream)] = {
            "rows": step * 8,
            "sources": [
                {
                    "epoch": 0,
                    "window": document // 256,
                    "cursor": cursor | {"whole": False},
                    "document": document % 256,
                    "offset": (step * 7919 + stream * 104729) % 300,
                }
            ],
        }
    return found


def write(folder: Path, attempt: int, rank: int, first: int, last: int, step: int = 0) -> None:
    writer = LedgerWriter(folder, attempt, rank, header(step))
    for number in range(first, last + 1):
        writer.after(number, states(number, rank))
    writer.close()


def test_entries_of_all_ranks_and_attempts(tmp_path: Path) -> None:
    folder = tmp_path / "ledger"
    for rank in (0, 1):
        write(folder, 1, rank, 1, 40)
    write(folder, 2, 0, 21, 30, step=20)
    first, second = read_ledger(folder)
    assert (first.number, first.header, second.number, second.header["step"]) == (1, header(), 2, 20)
    every = ROWS_BETWEEN * STREAMS // 512
    steps = list(range(every, 41, every))
    assert len(steps) > 3
    assert set(first.states) == set(range(STREAMS))
    for stream, found in first.states.items():
        assert found == {step: states(step, stream % 2)[str(stream)] for step in steps}
    assert set(second.states) == set(range(0, STREAMS, 2))


@pytest.mark.parametrize("lost", [1, 5, 30])
def test_a_torn_frame_is_passed_over_and_cut_off(tmp_path: Path, lost: int) -> None:
    folder = tmp_path / "ledger"
    write(folder, 1, 0, 1, 40)
    (path,) = folder.iterdir()
    content = path.read_bytes()
    (whole,) = read_ledger(folder)
    path.write_bytes(content[:-lost])
    (torn,) = read_ledger(folder)
    assert [*torn.states[0].items()] == [*whole.states[0].items()][:-1]
    # The same attempt again: as after a restart of its node, whose file the others still see.
    write(folder, 1, 0, 40, 48)
    (again,) = read_ledger(folder)
    assert list(again.states[0]) == [8, 16, 24, 32, 40, 48]
    assert again.states[0].items() >= whole.states[0].items()


def test_other_files_are_no_entries(tmp_path: Path) -> None:
    assert read_ledger(tmp_path / "nothing") == []
    (tmp_path / "00001-00000.ledger").write_bytes(b"something else")
    (tmp_path / "00002-00000.ledger").write_bytes(MAGIC + b"\x05\0\0\0\0\0\0\0abcde")
    (tmp_path / "notes.ledger").write_text("")
    assert read_ledger(tmp_path) == []
    write(tmp_path, 1, 0, 8, 8)
    assert [attempt.number for attempt in read_ledger(tmp_path)] == [1]


def test_a_disk_that_is_full_ends_no_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "ledger").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        write(tmp_path / "ledger", 1, 0, 1, 40)
    assert "cannot be written" in caplog.text
    assert len(caplog.records) == 1


def test_it_is_compact(tmp_path: Path) -> None:
    """About a fifth of a byte a row."""
    folder = tmp_path / "ledger"
    for rank in (0, 1):
        write(folder, 1, rank, 1, 800)
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert size / (800 * 512) < 0.25
