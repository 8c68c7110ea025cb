"""Readers that are processes: the same batches and messages, and no process left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from shardyard.data.formats import FormatInputs
from shardyard.data.readers import wire
from shardyard.data.readers.processes import ProcessReaders, default_kind, in_processes
from shardyard.data.stream.loader import TrainLoader
from shardyard.errors import DataError, UnavailableError
from shardyard.recipe.schema import Source
from support.data_cases import bytes_tokenizer, data
from support.waiting import until


def talks(path: Path, count: int = 60, last: str = "") -> str:
    """Conversations of different lengths, some of which nothing can be learned from."""
    with path.open("w") as file:
        for number in range(count):
            turns = [
                {"role": "user", "content": "q" * (1 + number * 5 % 17)},
                {"role": "assistant", "content": f"a{number}" if number % 9 else ""},
            ]
            file.write(json.dumps({"messages": turns}) + "\n")
        file.write(last)
    return str(path)


def loader(path: str, readers: int, rank: int = 0, ranks: int = 1, **options: Any) -> TrainLoader:
    recipe = data([Source(path=path)], sequence_length=96, **options)
    return TrainLoader(
        FormatInputs(recipe, bytes_tokenizer()),
        objective="instruction",
        global_batch=8,
        streams=8,
        seed=3,
        dp_rank=rank,
        dp_size=ranks,
        readers=readers,
    )


def taken(opened: TrainLoader, count: int) -> list[Any]:
    made = [next(opened) for _ in range(count)]
    return [
        [{name: value.tolist() for name, value in part.items()} for part in batch.micro_batches] + [batch.state]
        for batch in made
    ]


def children(opened: TrainLoader) -> list[psutil.Process]:
    crew = opened._feed.rows.crew
    assert isinstance(crew, ProcessReaders)
    return [psutil.Process(pid) for pid in crew.ids]


def ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
def test_processes_make_the_same_batches(tmp_path: Path) -> None:
    path = talks(tmp_path / "talk.jsonl")
    alone = loader(path, 0)
    expected, stats = taken(alone, 6), alone.stats()
    alone.close()
    first = loader(path, 2)
    assert taken(first, 2) == expected[:2]
    assert first.notes == []
    processes = children(first)
    state = json.loads(json.dumps(expected[1][-1]))
    rest = loader(path, 1)
    rest.load_state(state)
    assert taken(rest, 4) == expected[2:]
    rest.close()
    # A killed reader says so, and the loader does not come back.
    processes[1].kill()
    with pytest.raises(UnavailableError, match=r"ended by signal 9 \(SIGKILL\): perhaps the host ran out of memory"):
        list(first)
    first.close()
    assert all(map(ended, processes))
    assert stats["sources"][0]["left_out"]["unusable"] > 0


@pytest.mark.slow
def test_a_bad_row_has_the_same_message(tmp_path: Path) -> None:
    path = talks(tmp_path / "talk.jsonl", 20, "{\n")
    found = []
    for readers in (0, 1):
        opened = loader(path, readers, on_error="repair", error_limit=1e-9)
        with pytest.raises(DataError) as error:
            list(opened)
        found.append(str(error.value))
        opened.close()
    assert found[0] == found[1]
    assert "row" in found[0]


RANK = """
import sys, json
sys.path[:0] = json.loads(sys.argv[1])
from unit.data.readers.test_processes import children, loader
opened = loader(sys.argv[2], 1)
next(opened)
print(*[child.pid for child in children(opened)], flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_no_process_outlives_its_rank(tmp_path: Path) -> None:
    path = talks(tmp_path / "talk.jsonl")
    rank = subprocess.Popen(
        [sys.executable, "-c", RANK, json.dumps(sys.path), path],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert rank.stdout is not None
    processes = [psutil.Process(int(pid)) for pid in rank.stdout.readline().split()]
    assert len(processes) == 1
    # A terminal sends Ctrl-C to all processes, and a scheduler SIGTERM: the readers leave them to the rank.
    status = Path(f"/proc/{processes[0].pid}/status").read_text()
    ignored = int(next(line for line in status.splitlines() if line.startswith("SigIgn")).split()[1], 16)
    assert all(ignored & 1 << (number - 1) for number in (signal.SIGINT, signal.SIGTERM))
    rank.kill()
    rank.wait()
    rank.stdout.close()
    until(lambda: all(map(ended, processes)), "the readers ended")


def test_what_cannot_travel_stays_in_threads() -> None:
    made, note = in_processes(lambda: None, 2, "processes")
    assert made is None
    assert "the readers of the data are threads" in note
    assert in_processes(int, 2, "processes") == (int, "")
    assert in_processes(int, 0, "processes") == (None, "")
    assert in_processes(int, 2, "threads") == (None, "")
    assert default_kind("packed") == "threads"
    assert default_kind("conversations") == "processes"


@pytest.mark.parametrize("has_memory", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_arrays_arrive_as_they_were(monkeypatch: pytest.MonkeyPatch, has_memory: bool, shared: bool) -> None:
    if not has_memory:
        monkeypatch.delattr(os, "memfd_create")
    given = {"a": np.arange(30_000), "b": [np.zeros((0, 3)), np.float32(2), np.arange(5, dtype=np.uint16)], "c": "é"}
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    with ours, theirs:
        lacked = wire.send(ours, given, shared=shared)
        assert lacked == (shared and not has_memory)
        found = wire.receive(theirs)
        assert found["c"] == "é"
        assert np.array_equal(found["a"], given["a"])
        found["a"][0] = 7  # Rows may be changed, as those of the own process.
        assert [x.tolist() for x in found["b"]] == [[], 2.0, [0, 1, 2, 3, 4]]
        assert wire.send(ours, "small") is False
        assert wire.receive(theirs) == "small"
        ours.close()
        with pytest.raises(wire.EndedError):
            wire.receive(theirs)
