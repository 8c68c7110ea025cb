"""The command line: its table, help, output in pipes and terminals, exit codes and errors."""

from __future__ import annotations

import importlib
import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shardyard import __version__
from shardyard.cli import main as cli
from shardyard.cli.view import output
from shardyard.errors import HardwareError, TrainingError
from shardyard.recipe.catalog import shipped
from shardyard.recipe.catalog.descriptions import description_of
from shardyard.recipe.catalog.shipped import shipped_recipes, shipped_sweeps
from support.waiting import PATIENCE_SECONDS

SHARDYARD = [sys.executable, "-m", "shardyard.cli.main"]


def called(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [*SHARDYARD, *arguments], capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS, **options
    )


def test_help_lists_every_command_and_imports_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--help"]) == 0
    shown = capsys.readouterr().out
    for name, _, _, summary in cli.COMMANDS:
        assert f"\n  {name} " in shown
        assert summary.split()[0] in shown
    script = (
        "import sys; from shardyard.cli.main import run; run(['--help'])\n"
        "print([m for m in sys.modules if m.startswith('shardyard.')])"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=PATIENCE_SECONDS
    ).stdout
    assert "shardyard.recipe" not in loaded.splitlines()[-1]


def test_help_is_fast() -> None:
    best = 9.0
    for _ in range(3):
        before = os.times()
        assert called("--help").returncode == 0
        after = os.times()
        best = min(best, sum(after[2:4]) - sum(before[2:4]))
    assert best < 1.0, "CPU seconds, whatever else the machine does"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"shardyard {__version__}\n"


def test_nothing_shows_the_help_and_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([]) == 2
    assert "Usage: shardyard" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["validat"], "Error: No such command 'validat'. Did you mean 'validate'? `shardyard --help` shows"),
        (["train"], "Error: No such command 'train'. Did you mean 'launch'? `"),
        (["VERSION"], "Did you mean '--version'? `"),
        (["zzzz"], "Error: No such command 'zzzz'; `shardyard --help` shows"),
        (["validate"], "`shardyard validate --help` shows"),
        (["validate", "--nope", "x"], "No such option: --nope; `shardyard validate --help`"),
        (["recipes", "sho"], "Did you mean 'show'? `shardyard recipes --help`"),
    ],
)
def test_usage_errors_say_where_help_is(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(arguments) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.out == ""


def failing(error: BaseException) -> object:
    def load(self: object) -> object:
        raise error

    return load


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (TrainingError("rank 1 is gone."), 1, "Error: rank 1 is gone.\n"),
        (HardwareError("no bf16 here."), 1, "Error: no bf16 here.\n"),
        (KeyboardInterrupt(), 130, "Interrupted.\n"),
        (PermissionError(13, "Permission denied", "runs"), 1, "Error: runs: Permission denied.\n"),
        (ZeroDivisionError("x / 0"), 1, "Error: ZeroDivisionError: x / 0. This is a bug in Shardyard; --debug"),
    ],
)
def test_errors_are_a_paragraph_and_an_exit_code(
    error: BaseException, code: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli.LazyCommand, "load", failing(error))
    assert cli.run(["validate", "x"]) == code
    shown = capsys.readouterr().err
    assert shown.startswith(message)
    assert "Traceback" not in shown


def test_a_traceback_only_with_debug(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cli.LazyCommand, "load", failing(TrainingError("no.")))
    assert cli.run(["validate", "x", "--debug"]) == 1
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert shown.endswith("Error: no.\n")


def test_commands_return_their_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "COMMANDS", (("probe", __name__, "probe", "A probe."),))
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    assert cli.run(["probe", "3"]) == 3
    assert cli.run(["probe", "0"]) == 0


def probe(code: int) -> int:
    """A command for the test above."""
    return code


def test_the_table_points_at_modules_of_this_package() -> None:
    for name, module, attribute, summary in cli.COMMANDS:
        assert module.startswith("shardyard.cli."), name
        assert summary.endswith(".")
        if module in ("shardyard.cli.commands.recipes", "shardyard.cli.commands.validate"):
            assert hasattr(importlib.import_module(module), attribute), name


def test_a_closed_pipe_is_no_traceback() -> None:
    command = f"{' '.join(SHARDYARD)} explain train | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS
    )
    assert done.stderr == ""


def test_recipes_list_in_a_pipe_with_json_and_quietly(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["recipes", "list"]) == 0
    assert "gpt/quickstart\tA small byte-level GPT-2" in capsys.readouterr().out
    assert cli.run(["recipes", "list", "-q"]) == 0
    names = capsys.readouterr().out.split()
    assert "gpt/quickstart" in names
    assert cli.run(["recipes", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == names
    assert all(row["description"] and Path(row["path"]).is_file() for row in rows)


def test_recipes_show_and_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(["recipes", "show", "gpt/quickstart"]) == 0
    text = capsys.readouterr().out
    assert cli.run(["recipes", "copy", "gpt/quickstart"]) == 0
    assert capsys.readouterr().out == "quickstart.yaml\n"
    assert Path("quickstart.yaml").read_text() == text
    assert cli.run(["validate", "quickstart.yaml"]) == 0
    assert cli.run(["recipes", "copy", "gpt/quickstart"]) == 2
    assert "quickstart.yaml exists already" in capsys.readouterr().err
    assert cli.run(["recipes", "copy", "gpt/quickstart", "no/such/folder.yaml"]) == 2
    assert "there is no folder no/such" in capsys.readouterr().err
    assert cli.run(["recipes", "copy", "gpt/quickstart", "mine.yaml"]) == 0
    assert Path("mine.yaml").is_file()


def test_validate_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.yaml").write_text("name: x\nfoo: 1\n")
    assert cli.run(["validate", "--json", "gpt/quickstart", str(tmp_path / "bad.yaml")]) == 2
    good, bad = json.loads(capsys.readouterr().out)
    assert good == {"recipe": "gpt/quickstart", "ok": True, "problems": []}
    assert bad["ok"] is False
    assert {"where": f"{tmp_path}/bad.yaml:2", "path": "foo"}.items() <= bad["problems"][-1].items()


def test_explain_a_field(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["explain", "train.global_batch"]) == 0
    assert "unit: sequences" in capsys.readouterr().out
    assert cli.run(["explain", "zero", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fields"]["stage"]
    assert cli.run(["explain", "train.gloal_batch"]) == 2
    assert "did you mean 'global_batch'" in capsys.readouterr().err
    assert cli.run(["explain", "gpt/quickstrt"]) == 2
    assert "did you mean 'gpt/quickstart'" in capsys.readouterr().err


def in_terminal(arguments: list[str], **environment: str) -> str:
    """What a command shows in a terminal of its own."""
    master, slave = pty.openpty()
    settings = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR")}
    settings |= {"TERM": "xterm-256color", "COLUMNS": "100", **environment}
    process = subprocess.Popen([*SHARDYARD, *arguments], stdout=slave, stderr=slave, env=settings)
    os.close(slave)
    shown = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # the terminal is closed when the command has ended
            break
        if not part:
            break
        shown += part
    process.wait(timeout=PATIENCE_SECONDS)
    os.close(master)
    return shown.decode()


def test_a_terminal_gets_a_table_and_a_red_error_unless_no_color() -> None:
    assert "recipe " in in_terminal(["recipes", "list"]).splitlines()[0]
    assert "\x1b[1;31mError:" in in_terminal(["validate", "nope"])
    plain = in_terminal(["validate", "nope"], NO_COLOR="1")
    assert "Error: nope" in plain.replace("\x1b[1m", "").replace("\x1b[0m", "")
    assert "\x1b[1;31m" not in plain
    assert "\x1b[3" not in plain


def test_cells_stay_on_one_line_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(("a", "b"), [("1", "two\nlines\tand a tab")])
    assert capsys.readouterr().out == "1\ttwo lines and a tab\n"


AUDITED = """
import sys
opened = []
sys.addaudithook(lambda event, found: opened.append(str(found[0])) if event == "open" else None)
from shardyard.cli.main import run
assert run(["recipes", "list"]) == 0
recipes = [path for path in opened if path.endswith(".yaml")]
heavy = [name for name in ("torch", "ray", "shardyard.recipe.loading.load") if name in sys.modules]
print(len(recipes), len(set(recipes)), *heavy)
"""


def test_a_list_of_recipes_reads_each_file_once_and_checks_none() -> None:
    done = subprocess.run(
        [sys.executable, "-c", AUDITED], capture_output=True, text=True, check=True, timeout=PATIENCE_SECONDS
    )
    count = len([*shipped_recipes(), *shipped_sweeps()])
    assert done.stdout.splitlines()[-1].split() == [str(count), str(count)]


def test_a_recipe_without_a_description_of_its_own_has_that_of_its_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, quickstart = tmp_path / "recipes", shipped.find_recipe("gpt/quickstart")
    folder.mkdir()
    (folder / "a.yaml").write_text("model: {description: inner}\ndescription: >\n  two\n  lines\nname: [\n")
    (folder / "b.yaml").write_text("extends: gpt/quickstart\nname: b\n")
    (folder / "c.yaml").write_text("name: c\nfoo: 1\n")
    shared = shipped.share_folder
    monkeypatch.setattr(shipped, "share_folder", lambda kind: folder if kind == "recipes" else shared(kind))
    assert description_of(folder / "a.yaml") == "two lines\n"
    assert description_of(folder / "b.yaml") is None
    assert description_of(folder / "none.yaml") is None
    (folder / "gpt").mkdir()
    shutil.copy(quickstart, folder / "gpt" / "quickstart.yaml")
    assert cli.run(["recipes", "list"]) == 0
    rows = dict(line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert rows["b"] == rows["gpt/quickstart"]
    assert rows["c"].startswith("broken, ")


@pytest.mark.slow
def test_a_recipe_is_explained_with_the_layout_of_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"instruction": f"How {number}?", "input": "", "output": f"So, {number}."} for number in range(40)]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "asked.yaml").write_text(
        "name: asked\nobjective: instruction\ntokenizer: bytes\n"
        "model: {family: gpt2, config: {n_layer: 1, n_head: 2, n_embd: 16}}\n"
        "data: {sequence_length: 64, train: [{path: asked.jsonl, holdout: 0.2}]}\n"
        "train: {global_batch: 4, steps: 3}\noptimizer: {name: adamw, lr: 1.0e-3}\n"
    )
    monkeypatch.chdir(tmp_path)
    assert cli.run(["explain", "asked.yaml"]) == 0, capsys.readouterr().err
    assert "instruction" in capsys.readouterr().out
