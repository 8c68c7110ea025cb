"""Whatever is wrong with a command line ends with exit code 2 and a sentence, in every command."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from shardyard.cli import main as cli
from shardyard.tracking.run.folder import RunFolder


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that does something, with its words."""
    if isinstance(command, cli.LazyCommand):
        command = command.load()
    if not hasattr(command, "list_commands"):
        yield path, command
        return
    context = typer.Context(command)
    for name in command.list_commands(context):
        yield from leaves(command.get_command(context, name), (*path, name))


COMMANDS = dict(leaves(typer.main.get_command(cli.app)))
# What takes no name, or starts something whatever the name is.
NAMELESS = {"cluster", "doctor", "dashboard", "ps"}


def arguments_of(command: Any) -> list[Any]:
    return [one for one in command.params if one.param_type_name == "argument"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a runs folder of one run, a file, and nothing else."""
    for variable in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("SHARDYARD_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    RunFolder.create(tmp_path / "runs", "r", "name: r\n", "name: r\n", run_id="r-1")
    (tmp_path / "file.txt").write_text("x")
    return tmp_path


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    code = cli.run(words)
    shown = capsys.readouterr()
    assert code == 2, (words, shown)
    assert shown.err.startswith("Error: "), words
    assert "This is a bug" not in shown.err
    return shown.err


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 40
    assert ("sweep", "resume") in COMMANDS


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_in_all_its_forms(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for words in ([*path, "--help"], [*path, "-h"], ["help", *path]):
        assert cli.run(words) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0].startswith(f"Usage: shardyard {' '.join(path)}")
    assert shown[0] == shown[1] == shown[2]
    assert "-h, --help" in shown[0]


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_options_and_names_that_are_none(
    path: tuple[str, ...], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = arguments_of(COMMANDS[path])
    assert f"shardyard {' '.join(path)} --help" in refused([*path, "--nope"], capsys)
    if any(one.required for one in wanted):
        assert "Missing argument" in refused(list(path), capsys)
    if path[0] not in NAMELESS:
        refused([*path, *["no/such/thing"] * max(1, len(wanted))], capsys)


@pytest.mark.parametrize(
    "line",
    [
        "dashboard --port 99999",
        "dashboard --host nope.invalid --no-browser",
        "dashboard --runs-dir file.txt --no-browser",
        "plan gpt/quickstart --memory abc",
        "plan gpt/quickstart -s",
        "plan gpt/quickstart -s x",
        "launch file.txt",
        "launch .",
        "launch gpt/quickstart --runs-dir file.txt/x --local",
        "launch gpt/quickstart --until 0",
        "launch gpt/quickstart --local -s data.train.0.source=null -s data.train.0.path=/nope/x.txt",
        "runs r-2",
        "runs --runs-dir file.txt",
        "compare r-1",
        "sample r-1 x --temperature -1",
        "sample r-1 x --step 3",
        "eval r-1 --prompt x",
        "export r-1 runs",
        "export r-1 --gguf q9",
        "export r-1 --adapter --gguf f16",
        "push r-1 nobody",
        "cluster join nonsense",
        "cluster up --nodes 0",
        "ps --address nonsense",
        "ps --on slrm",
        "logs r-1 --rank 5",
        "wait r-1 --timeout -1",
        "submit gpt/quickstart --name ???",
        "submit gpt/quickstart --dry-run none/x",
        "submit gpt/quickstart --working-dir none --dry-run y",
        "data prepare",
        "data prepare digits --from none",
        "data show digit",
        "data verify digit",
        "data rows r-1 --step 0",
        "tokenizer train file.txt",
        "tokenizer train bytes",
        "wandb sync",
        "wandb sync r-1",
        "wandb import none",
        "recipes copy gpt/quickstart file.txt",
        "recipes copy gpt/quickstart none/x.yaml",
        "sweep run gpt/quickstart",
        "sweep fit nope --form x",
        "explain quantum",
        "validate gpt/quickstart gpt/nope",
    ],
)
def test_values_that_cannot_be(line: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(line.split(), capsys)


def test_a_recipe_is_no_sweep(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(["sweep", "gpt/quickstart"], capsys)
    assert "1 problem\n" in said
    assert "is a recipe, not a sweep; `shardyard launch gpt/quickstart` trains it" in said


def test_help_of_nothing_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["help"]) == 0
    assert capsys.readouterr().out.startswith("Usage: shardyard [OPTIONS]")


def test_other_names_are_of_commands() -> None:
    known = {name for name, *_ in cli.COMMANDS} | {"--version"}
    assert set(cli.OTHER_NAMES.values()) <= known
    assert not set(cli.OTHER_NAMES) & known
