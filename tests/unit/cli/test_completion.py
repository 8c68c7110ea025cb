"""Tab in bash, zsh and fish: commands, options, recipes, fields and run ids, as the shells themselves ask."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shardyard.cli import main as cli
from shardyard.tracking.run.folder import RunFolder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with the command on the path and one run."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    script = tmp_path / "shardyard"
    script.write_text(
        f"#!{sys.executable}\nimport sys\nsys.argv[0] = 'shardyard'\nfrom shardyard.cli.main import main\nmain()\n"
    )
    script.chmod(0o755)
    RunFolder.create(tmp_path / "runs", "mine", "", "", run_id="mine-1")
    return tmp_path


def offered(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What is offered for the last word, asked as bash asks."""
    monkeypatch.setenv("_SHARDYARD_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", " ".join(["shardyard", *words]))
    monkeypatch.setenv("COMP_CWORD", str(len(words)))
    with pytest.raises(SystemExit):
        cli.run([])
    return capsys.readouterr().out.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["lau"], ["launch"]),
        (["sweep", "re"], ["resume"]),
        (["launch", "gpt/qui"], ["gpt/quickstart"]),
        (["launch", "gpt/quickstart", "--unt"], ["--until"]),
        (["launch", "gpt/quickstart", "-s", "optimizer.l"], ["optimizer.lr="]),
        (["explain", "train.global"], ["train.global_batch"]),
        (["resume", "mi"], ["mine-1"]),
        (["sample", "--runs-dir", "{home}/runs", "mi"], ["mine-1"]),
        (["runs", "la"], ["latest"]),
        (["runs", "--runs-dir", "/nowhere", "la"], []),
        (["sweep", "run", "sweeps/lr"], ["sweeps/lr-batch"]),
        (["tokenizer", "show", "byt"], ["bytes"]),
        (["data", "prepare", "emo"], ["emoji-captions"]),
        (["plan", "gpt/quickstart", "--gpu", "h200"], ["h200", "h200-nvl"]),
    ],
)
def test_words_are_completed(
    words: list[str],
    expected: list[str],
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SHARDYARD_RUNS", str(home / "runs"))
    found = offered([word.replace("{home}", str(home)) for word in words], monkeypatch, capsys)
    assert found[: len(expected)] == expected if expected else not found


def in_shell(shell: str, script: str, home: Path) -> str:
    done = subprocess.run(
        [shell, "-c", script], cwd=home, capture_output=True, text=True, check=False, timeout=60, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_bash_installs_and_completes(home: Path) -> None:
    assert "bash completion installed" in in_shell("bash", "shardyard --install-completion; true", home)
    script = (
        f"source '{home}/.bashrc'; COMP_WORDS=(shardyard resume mi); COMP_CWORD=2; "
        '_shardyard_completion shardyard; echo "${COMPREPLY[@]}"'
    )
    assert in_shell("bash", script, home) == "mine-1\n"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("fish") is None, reason="there is no fish here")
def test_fish_installs_and_completes(home: Path) -> None:
    assert "fish completion installed" in in_shell("fish", "shardyard --install-completion; true", home)
    script = f"source {home}/.config/fish/completions/shardyard.fish; complete -C 'shardyard resume mi'"
    assert in_shell("fish", script, home) == "mine-1\n"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh here")
def test_zsh_installs_and_completes(home: Path) -> None:
    assert "zsh completion installed" in in_shell("zsh", "shardyard --install-completion; true", home)
    script = (
        "compdef() { : }; words=(shardyard resume mi); CURRENT=3; _arguments() { print -r -- $2 $3 $4 $5 $@ }; "
        f"source {home}/.zfunc/_shardyard; _shardyard_completion"
    )
    assert "mine-1" in in_shell("zsh", script, home)
