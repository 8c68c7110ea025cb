"""Tables in terminals of 40 to 200 columns: no id and no number is cut, whatever the width."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import sys
import termios
from pathlib import Path

import pytest

from shardyard.cli import main as cli
from shardyard.cli.view.table import layout, wrapped
from shardyard.recipe.catalog.shipped import shipped_recipes
from shardyard.tracking.run.folder import RunFolder

NAMES = ("gpt-quickstart", "gpt-quickstart", "distillation-python-docs-teacher")
PROSE = "what Ray reserves for each of 2 workers: cluster.cpus_per_worker, no GPU found"
TABLES = {
    "runs": (
        ("run", "state", "step", "loss", "eval loss", "age", "curve"),
        [
            (
                "gpt-quickstart-20261129-020956-239c",
                "interrupted",
                "39/120000",
                "0.1260",
                "3.1000",
                "3 s",
                "▁▂▃▄▅▆▇█" * 2,
            )
        ],
    ),
    "plan": (("what", "value", ""), [("micro-batch", "8", PROSE), ("each worker", "1 CPU core", PROSE)]),
    "pairs": (
        ("", ""),
        [("folder", "/home/someone/with/a/long/name/runs/gpt-quickstart-20261129-020956-239c"), ("step", "3")],
    ),
    "jobs": (
        ("job", "name", "state", "doing", "age", "tags"),
        [("gpt-quickstart-20261129-020956-239c", "quick", "RUNNING", "step 12/120000, loss 2.1234", "3m05s", "a,b,c")],
    ),
    "recipes": (("recipe", "what it is for"), [(found.name, PROSE) for found in shipped_recipes()]),
    "sweep": (
        ("trial", "state", "step", "eval/validation/loss", "optimizer.lr", "train.global_batch", "run"),
        [("000", "finished", "500/500", "1.6192", "0.0003", "16", "lr-batch-000-20261129-020956-239c")],
    ),
    "wide": (("name", "what"), [("多言語", "訓練 データ 訓練 データ")]),
}


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
@pytest.mark.parametrize("name", TABLES)
def test_every_word_is_whole_at_any_width(name: str, width: int) -> None:
    columns, rows = TABLES[name]
    lines = [line for line, _ in layout(columns, rows, width)]
    words = " ".join(lines).split()
    for row in rows:
        for cell in row:
            for word in cell.split():
                assert word in words
    assert "…" not in "".join(lines)
    too_long = [line for line in lines if len(line) > width]
    assert all(len(line.split()) == 1 for line in too_long), too_long


def test_a_table_that_fits_is_a_table() -> None:
    columns, rows = TABLES["jobs"]
    assert len(layout(columns, rows, 200)) == 2
    # At 80 columns the id has a line of its own, and the rest a table below it.
    assert [line.split()[0] for line, _ in layout(columns, rows, 80)][:3] == ["job", "name", rows[0][0]]
    # At 40 each row is a block.
    assert layout(columns, rows, 40)[0] == (rows[0][0], True)
    assert "  state  RUNNING" in [line for line, _ in layout(columns, rows, 40)]


def test_text_wraps_between_words() -> None:
    assert wrapped("one two-three four", 9) == ["one", "two-three", "four"]
    assert wrapped("", 9) == [""]
    assert wrapped("unbreakable", 3) == ["unbreakable"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for index, name in enumerate(NAMES):
        text = f"name: {name}\noptimizer: {{lr: {10.0**-index}}}\nschedule: {{warmup: {index}}}\n"
        run = RunFolder.create(folder, name, text, text, total_steps=120000)
        values = {"train/loss": 2.1234, "train/tokens": 39e6, "eval/validation/loss": 3.25}
        lines = [json.dumps({"step": step, **values}) for step in (1, 100000 + index)]
        run.metrics.write_text("\n".join(lines) + "\n")
        run.update(state=("finished", "failed", "interrupted")[index])
    return folder


def in_terminal(arguments: list[str], columns: int) -> str:
    """What a command shows in a terminal of so many columns."""
    process, terminal = pty.fork()
    if process == 0:
        os.environ |= {"TERM": "dumb", "COLUMNS": str(columns), "NO_COLOR": "1"}
        os.execv(sys.executable, [sys.executable, "-m", "shardyard.cli.main", *arguments])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    shown = b""
    try:
        while part := os.read(terminal, 65536):
            shown += part
    except OSError:  # the end of a terminal
        pass
    finally:
        os.close(terminal)
        _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 0, shown
    return shown.decode()


@pytest.mark.slow
@pytest.mark.parametrize("columns", [60, 80, 200])
def test_runs_and_compare_show_ids_and_numbers_whole(columns: int, runs: Path) -> None:
    ids = [path.name for path in runs.iterdir()]
    listed = in_terminal(["runs", "--runs-dir", str(runs)], columns)
    compared = in_terminal(["compare", *ids, "--runs-dir", str(runs)], columns)
    for shown in (listed, compared):
        assert "…" not in shown
        for name in ids:
            assert name in shown.split()
        assert max(map(len, shown.splitlines())) <= columns
    for word in ("100000/120000", "100001/120000", "2.1234", "3.2500", "interrupted"):
        assert word in listed.split()
    for word in ("39,000,000", "2.1234", "100002", "0.01", "interrupted"):
        assert word in compared.split()
    one = in_terminal(["runs", ids[0], "--runs-dir", str(runs)], columns)
    assert str(runs / ids[0]) in one.split()


@pytest.mark.slow
@pytest.mark.parametrize("columns", [60, 80, 200])
def test_what_is_watched_shows_ids_and_numbers_whole(columns: int, runs: Path) -> None:
    for path in runs.iterdir():
        shown = in_terminal(["watch", "--once", path.name, "--runs-dir", str(runs)], columns)
        assert path.name in shown.replace(":", " ").split()
        for number in ("2.1234", "3.2500"):
            assert number in shown.split()
        assert "…" not in shown
        assert max(map(len, shown.splitlines())) <= columns


def test_a_pipe_gets_the_ids_of_what_is_compared(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = sorted(path.name for path in runs.iterdir())
    assert cli.run(["compare", *ids, "--runs-dir", str(runs)]) == 0
    assert capsys.readouterr().out.splitlines()[0].split("\t") == ["run", *ids]


def test_the_fields_of_a_section_are_wrapped_beside_their_names() -> None:
    shown = in_terminal(["explain", "zero"], 60).splitlines()
    assert max(map(len, shown)) <= 60
    assert any(line.startswith(" " * 24) for line in shown)
