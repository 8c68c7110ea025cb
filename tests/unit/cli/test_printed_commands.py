"""What output and pages tell to type is taken by the command line, and found from wherever it is pasted."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from shardyard.dashboard.web.details import commands
from shardyard.recipe.explain import is_field
from shardyard.recipe.schema import Recipe
from shardyard.tracking.run.folder import RunFolder, runs_dir_option, typed
from support.cli import write_recipe
from support.commands import commands_in, refusal, texts_of_python, texts_of_script
from support.tiny import write_corpus

PACKAGE = Path(__file__).resolve().parents[3] / "platform" / "shardyard"
# Names of commands in a sentence, not something to type, and those whose name is filled in.
MENTIONS = {
    "cli/main.py": {"shardyard 1", "shardyard help COMMAND"},
    "data/build/card.py": {"shardyard data build"},
    "data/build/spec.py": {"shardyard data build"},
    "data/tokenized/opening.py": {"shardyard data tokenize"},
    "recipe/rules/filters.py": {"shardyard data build"},
    "recipe/sections/data.py": {"shardyard data build", "shardyard data forget", "shardyard data tokenize"},
    "engine/inference/load.py": {"shardyard export"},
    "engine/inference/step_sources.py": {"shardyard data rows"},
    "dashboard/web/data_page.py": {"shardyard data inspect"},
    "dashboard/web/cluster.py": {"shardyard 1"},
    "dashboard/static/pages/jobs.js": {"shardyard launch"},
    "launch/jobs/entry.py": {"shardyard submit"},
    "launch/jobs/spec.py": {"shardyard submit"},
    "launch/schedulers/kuberay/jobs.py": {"shardyard submit", "shardyard submit 1 --on kuberay, Shardyard 1"},
    "launch/local_cluster/nodes.py": {"shardyard cluster"},
    "launch/local_cluster/status.py": {"shardyard cluster 1"},
    "launch/schedulers/slurm/script.py": {"shardyard submit --on slurm"},
    "cli/commands/cluster.py": {"shardyard 1"},
}
FIELD = re.compile(r"`([a-z_]+(?:\.[a-z_]+)+)`")


@cache
def texts() -> list[tuple[str, str]]:
    """All texts of the package that people may read, with the file of each."""
    found = []
    for path in sorted(PACKAGE.rglob("*")):
        name = path.relative_to(PACKAGE).as_posix()
        if path.suffix == ".py":
            found += [(name, text) for text in texts_of_python(path)]
        elif path.suffix in (".js", ".html"):
            found += [(name, text) for text in texts_of_script(path)]
    return found


@pytest.mark.slow
def test_every_command_that_is_printed_is_one() -> None:
    told = [(name, command) for name, text in texts() for command in commands_in(text)]
    assert len(told) > 90
    assert {name.partition("/")[0] for name, _ in told} >= {
        "cli",
        "dashboard",
        "engine",
        "launch",
        "recipe",
        "tracking",
    }
    wrong = [
        f"{name}: {command}: {problem}"
        for name, command in told
        if command not in MENTIONS.get(name, ()) and (problem := refusal(command)) is not None
    ]
    assert not wrong, "\n".join(wrong)


def test_every_field_that_a_text_names_is_one() -> None:
    named = {(name, field) for name, text in texts() for field in FIELD.findall(text)}
    fields = {(name, field) for name, field in named if field.partition(".")[0] in Recipe.model_fields}
    assert ("dashboard/static/run/samples.js", "evaluate.every") in fields
    assert not [(name, field) for name, field in sorted(fields) if not is_field(field)]


def test_what_is_mistyped_is_refused() -> None:
    assert refusal("shardyard resume") is not None
    assert refusal("shardyard resume --nope x") is not None
    assert refusal("shardyard sample x") is not None
    assert refusal("shardyard data nope") is not None
    assert refusal("shardyard resume x") is None


def test_a_run_is_named_so_that_it_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SHARDYARD_RUNS", raising=False)
    assert typed(tmp_path / "runs" / "a-1") == "a-1"
    assert typed(tmp_path / "runs" / "sweeps" / "s-1") == "s-1"
    assert typed(tmp_path / "else where" / "a-1") == f"'{tmp_path}/else where/a-1'"
    assert runs_dir_option(tmp_path / "runs") == ""
    assert runs_dir_option(tmp_path / "b") == f" --runs-dir {tmp_path}/b"
    monkeypatch.setenv("SHARDYARD_RUNS", str(tmp_path / "else where"))
    assert typed(tmp_path / "else where" / "a-1") == "a-1"
    assert typed(tmp_path / "runs" / "a-1") == f"{tmp_path}/runs/a-1"


def test_the_page_offers_what_a_run_can_do(tmp_path: Path) -> None:
    for objective, verb in (("causal_lm", "sample"), ("masked_lm", "eval")):
        folder = RunFolder.create(tmp_path / "my runs", "r", "name: r\n", f"name: r\nobjective: {objective}\n").path
        told = commands(folder, "interrupted")
        assert told["try"].split()[1] == verb
        assert told["resume"] == f"shardyard resume '{folder}'"
        assert "resume" not in commands(folder, "finished")
        assert not [command for command in told.values() if refusal(command) is not None]


def pasted(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A command in a shell, in another folder than the one that it was printed in."""
    line = command.replace("shardyard ", f"{shlex.quote(sys.executable)} -m shardyard.cli.main ", 1)
    return subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.slow
def test_what_a_launch_prints_can_be_pasted_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHARDYARD_RUNS", raising=False)
    there, elsewhere = tmp_path / "there", tmp_path / "elsewhere"
    there.mkdir()
    elsewhere.mkdir()
    recipe = write_recipe(
        tmp_path,
        write_corpus(tmp_path),
        train={"steps": 4, "precision": "fp32"},
        schedule={"warmup": 1},
        checkpoint={"every": 2},
        evaluate={"every": 4},
        cluster={"workers": 1},
        tracking={"wandb": {"mode": "offline"}},
    )
    first = pasted(f"shardyard launch {recipe} --local --until 2 --runs-dir '../my runs'", there)
    assert first.returncode == 0, first.stderr
    (resume,) = [command for command in commands_in(first.stdout) if " resume " in command]
    second = pasted(resume, elsewhere)
    assert second.returncode == 0, second.stderr
    told = list(commands_in(second.stdout))
    assert [command.split()[1] for command in told] == ["sample", "wandb"]  # there is nothing left to resume
    sampled = pasted(told[0], elsewhere)
    assert sampled.returncode == 0, sampled.stderr
    assert "your prompt" in sampled.stdout
    assert pasted(f"{told[1]} --dry-run", elsewhere).returncode == 0
