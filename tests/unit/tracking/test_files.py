"""Files that stay whole: replaced at once, appended by whole lines, readable after any crash."""

import json
import logging
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shardyard.tracking import files
from shardyard.tracking.files import JsonlTail, JsonlWriter, decode, encode, read_jsonl, write_atomically
from support.waiting import PATIENCE_SECONDS, until

_WRITER = """
import sys
from pathlib import Path
from shardyard.tracking.files import JsonlWriter
from shardyard.tracking.run.folder import RunFolder
run = RunFolder(Path(sys.argv[1])); lines = JsonlWriter(run.metrics); step = 0
print("ready", flush=True)
while True:
    step += 1
    lines.append({"step": step, "text": "x" * 5000})
    run.update(step=step, filler="y" * (step % 7) * 10000)
"""


def test_numbers_that_json_lacks_survive_the_round_trip() -> None:
    text = encode({"nan": math.nan, "list": [math.inf, -math.inf], "plain": 1.5, "none": None, "flag": True})
    strict = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert strict["nan"] == "NaN"
    assert strict["list"] == ["Infinity", "-Infinity"]
    back = decode(text)
    assert math.isnan(back["nan"])
    assert back["list"] == [math.inf, -math.inf]
    assert (back["plain"], back["none"], back["flag"]) == (1.5, None, True)


def test_numbers_of_torch_and_numpy_become_plain_ones() -> None:
    import numpy as np
    import torch

    record = {
        "a": torch.tensor(1.5),
        "b": np.float32(2.5),
        "c": torch.tensor(math.nan),
        "d": Path("p"),
        "e": torch.ones(2),
    }
    back = decode(encode(record))
    assert (back["a"], back["b"], back["d"]) == (1.5, 2.5, "p")
    assert math.isnan(back["c"])
    assert isinstance(back["e"], str)


def test_samples_keep_texts_that_look_like_numbers(tmp_path: Path) -> None:
    JsonlWriter(tmp_path / "samples.jsonl").append({"text": "NaN"})
    assert read_jsonl(tmp_path / "samples.jsonl", numbers=False) == [{"text": "NaN"}]


def test_a_torn_last_line_is_ignored_and_swallows_nothing(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2, "train/l')
    assert read_jsonl(path) == [{"step": 1}]
    JsonlWriter(path).append({"step": 3})
    assert read_jsonl(path) == [{"step": 1}, {"step": 3}]


def test_a_tail_returns_complete_new_lines_only(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    tail = JsonlTail(path)
    assert tail.new() == []
    with path.open("ab", buffering=0) as file:
        file.write(b'{"a": 1}\n{"a"')
        assert tail.new() == [{"a": 1}]
        assert tail.new() == []
        file.write(b": 2}\nnot json\n[1]\n")
        assert tail.new() == [{"a": 2}]
        assert tail.torn == 2
    path.write_bytes(b'{"a": 9}\n')
    assert tail.new() == [{"a": 9}], "a file that was replaced by a shorter one is read afresh"


def test_unicode_line_separators_inside_a_text_do_not_split_a_line(tmp_path: Path) -> None:
    JsonlWriter(tmp_path / "s.jsonl").append({"text": "a\u2028b\x85c\n"})
    assert read_jsonl(tmp_path / "s.jsonl", numbers=False) == [{"text": "a\u2028b\x85c\n"}]


@pytest.mark.slow
def test_two_processes_append_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    code = (
        "import sys; from pathlib import Path; from shardyard.tracking.files import JsonlWriter\n"
        "w = JsonlWriter(Path(sys.argv[1]))\n"
        "for i in range(500): assert w.append({'who': sys.argv[2], 'i': i, 'text': 'z' * 9000})"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), who]) for who in "ab"]
    assert [writer.wait(timeout=PATIENCE_SECONDS) for writer in writers] == [0, 0]
    records = read_jsonl(path)
    for who in "ab":
        assert [record["i"] for record in records if record["who"] == who] == list(range(500))
    assert JsonlTail(path).torn == 0


@pytest.mark.slow
def test_a_killed_writer_costs_at_most_a_line_and_leaves_a_whole_run_json(tmp_path: Path) -> None:
    """Linux may end a write of more than a page half-way when its process is killed; the next writer ends that line."""
    from shardyard.tracking.run.folder import RunFolder

    run = RunFolder.create(tmp_path, "killed", "a: 1", "a: 1")
    seen_bytes = 0
    for attempt in range(6):
        writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(run.path)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        # The moment of the kill differs by what has been written: 20 KB more, and a quarter of a line each time.
        enough = seen_bytes + 20_000 + 1250 * attempt
        until(lambda: run.metrics.exists() and run.metrics.stat().st_size >= enough, "more lines", every=0.001)  # noqa: B023
        writer.send_signal(signal.SIGKILL)
        writer.wait(timeout=PATIENCE_SECONDS)
        assert run.info().id == run.id
        lines = run.metrics.read_bytes().rpartition(b"\n")[0].split(b"\n")
        whole = [line for line in lines if line.endswith(b"}")]
        assert len(lines) - len(whole) <= attempt, "at most one torn line a kill"
        assert {len(json.loads(line)["text"]) for line in whole} == {5000}
        assert len(read_jsonl(run.metrics)) == len(whole)
        seen_bytes = run.metrics.stat().st_size


def test_a_replacement_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.json"
    write_atomically(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["run.json"]


def test_a_full_disk_is_counted_and_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    path.symlink_to("/dev/full")
    writer = JsonlWriter(path)
    with caplog.at_level(logging.WARNING):
        assert [writer.append({"step": step}) for step in range(3)] == [False] * 3
    assert writer.lost == 3
    assert writer.problem is not None
    assert "No space left" in writer.problem
    assert len(caplog.records) == 1


def test_lines_of_a_full_disk_are_written_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The disk takes half of a line, then nothing, then everything again."""
    path = tmp_path / "metrics.jsonl"
    writer, write, room = JsonlWriter(path), os.write, [1 << 20]

    def limited(descriptor: int, data: bytes) -> int:
        if room[0] == 0:
            raise OSError(28, "No space left on device")
        taken = data[: room[0]]
        room[0] -= len(taken)
        return write(descriptor, taken)

    monkeypatch.setattr(os, "write", limited)
    assert writer.append({"step": 1})
    room[0] = 5
    assert [writer.append({"step": step}) for step in (2, 3)] == [False, False]
    assert read_jsonl(path) == [{"step": 1}]
    assert (writer.lost, writer.take_late()) == (2, 0)
    room[0] = 1 << 20
    assert writer.append({"step": 4})
    assert read_jsonl(path) == [{"step": step} for step in (1, 2, 3, 4)]
    assert (writer.lost, writer.take_late(), writer.take_late(), writer.problem) == (0, 2, 0, None)
    room[0] = 0
    assert not writer.append({"step": 5})
    room[0] = 1 << 20
    writer.close()
    assert (writer.lost, writer.take_late(), read_jsonl(path)[-1]) == (0, 1, {"step": 5})
    assert len(caplog.records) == 2, "each outage is told once"


def test_of_many_waiting_lines_the_oldest_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_WAITING", 2)
    path = tmp_path / "metrics.jsonl"
    path.symlink_to("/dev/full")
    writer = JsonlWriter(path)
    for step in range(5):
        writer.append({"step": step})
    assert writer.lost == 5
    path.unlink()
    writer.close()
    assert writer.lost == 5, "a descriptor keeps its file"
