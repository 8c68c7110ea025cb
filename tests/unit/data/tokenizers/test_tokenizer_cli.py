"""`shardyard tokenizer`: list, show and train, in a pipe, as JSON and with mistakes."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from shardyard.cli import main as cli
from shardyard.cli.commands.tokenizer import _progress
from support.tokenizer_cases import KINDS, write_spec
from support.waiting import read_until

Captured = pytest.CaptureFixture[str]


def test_the_list_has_name_kind_size_and_description(capsys: Captured) -> None:
    assert cli.run(["tokenizer", "list"]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert ["bytes", "bytes", "257"] in [row[:3] for row in rows]
    assert ["wordpiece-docs-4k", "wordpiece", "4096"] in [row[:3] for row in rows]
    assert all(len(row) == 4 and row[3] for row in rows)
    assert cli.run(["tokenizer", "list", "-q"]) == 0
    assert capsys.readouterr().out.splitlines() == [row[0] for row in rows]
    assert cli.run(["tokenizer", "list", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == [row[0] for row in rows]


@pytest.mark.parametrize("words", [["list"], ["show", "wordpiece-docs-4k"]], ids=lambda words: words[0])
def test_looking_at_tokenizers_loads_no_library_of_them(words: list[str]) -> None:
    code = (
        "import sys\nfrom shardyard.cli import main\n"
        f"assert main.run(['tokenizer', *{words}]) == 0\n"
        "print('heavy:', [name for name in ('torch', 'transformers', 'tokenizers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_a_broken_or_untrained_spec_stays_in_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr("shardyard.recipe.catalog.shipped.share_folder", lambda kind: tmp_path)
    write_spec(tmp_path, "new", **KINDS["bpe"])
    (tmp_path / "odd.yaml").write_text("kind: odd\n")
    assert cli.run(["tokenizer", "list"]) == 0
    new, odd = capsys.readouterr().out.splitlines()
    assert new == "new\tbpe\tnot trained\tfor tests"
    assert "broken: tokenizer spec" in odd


def test_training_prints_the_report_and_showing_repeats_it(tmp_path: Path, capsys: Captured) -> None:
    spec = write_spec(tmp_path, **KINDS["bpe"])
    assert cli.run(["tokenizer", "train", str(spec)]) == 0
    said = capsys.readouterr()
    rows = dict(line.split("\t", 1) for line in said.out.splitlines() if "\t" in line)
    assert rows["vocabulary"] == "400 tokens, 2 of them special"
    assert rows["compression"].endswith(" bytes/token")
    assert rows["unknown"] == "0.00% of the tokens"
    assert said.out.splitlines()[-1] == str(tmp_path / "mine")
    assert said.err.splitlines() == ["reading documents …", "training …", "measuring …"]
    assert cli.run(["tokenizer", "show", str(spec), "one object"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(spec.read_text())
    assert f"fingerprint\t{rows['fingerprint']}" in shown
    assert "decoded\tone object" in shown
    assert cli.run(["tokenizer", "show", str(tmp_path / "mine"), "one", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["report"]["fingerprint"] == rows["fingerprint"]


def test_json_and_quiet(tmp_path: Path, capsys: Captured) -> None:
    spec = write_spec(tmp_path, **KINDS["unigram"])
    assert cli.run(["tokenizer", "train", str(spec), "--json", "-o", str(tmp_path / "a")]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["vocabulary"]["size"] == 300
    assert json.loads(said.out)["folder"] == str(tmp_path / "a")
    assert said.err == ""
    assert cli.run(["tokenizer", "train", str(spec), "-q", "-o", str(tmp_path / "b")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'b'}\n"


def test_a_vocabulary_that_the_data_cannot_give_is_said(tmp_path: Path, capsys: Captured) -> None:
    spec = write_spec(tmp_path, **{**KINDS["bpe"], "vocabulary": 50_000})
    assert cli.run(["tokenizer", "train", str(spec)]) == 0
    assert "The spec asks for 50000 tokens; the data yields only" in capsys.readouterr().err


def test_labels_have_a_table_of_their_own(tmp_path: Path, capsys: Captured) -> None:
    rows = [{"en": f"the house {n}", "es": f"la casa {n}"} for n in range(20)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = [{"path": str(path), "text_columns": ["en", "es"], "languages": ["en", "es"]}]
    spec = write_spec(tmp_path, **{**KINDS["unigram"], "train": train, "held_out": 0.3})
    assert cli.run(["tokenizer", "train", str(spec)]) == 0
    out = capsys.readouterr().out
    assert "\nen\t" in out
    assert "\nes\t" in out


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["train", "byte"], "neither a spec file (.yaml) nor a shipped spec; did you mean 'bytes'?", 2),
        (["train", "bytes"], "which needs no training", 2),
        (["train", "bpe-docs-4k"], "--replace trains it again", 2),
        (["show", "nowhere.yaml"], "neither a spec file", 2),
    ],
)
def test_mistakes_are_explained(arguments: list[str], message: str, code: int, capsys: Captured) -> None:
    assert cli.run(["tokenizer", *arguments]) == code
    assert message in capsys.readouterr().err


def test_a_folder_that_is_there_is_replaced_only_when_asked(tmp_path: Path, capsys: Captured) -> None:
    spec = write_spec(tmp_path, **KINDS["bpe"])
    arguments = ["tokenizer", "train", str(spec), "-q"]
    assert cli.run(arguments) == 0
    (tmp_path / "mine" / "stray").touch()
    assert cli.run(arguments) == 2
    assert (tmp_path / "mine" / "stray").exists()
    assert cli.run([*arguments, "--replace"]) == 0
    assert not (tmp_path / "mine" / "stray").exists()


def test_a_folder_that_is_no_tokenizer_is_never_replaced(tmp_path: Path, capsys: Captured) -> None:
    spec = write_spec(tmp_path, **KINDS["bpe"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").touch()
    assert cli.run(["tokenizer", "train", str(spec), "--replace"]) == 2
    assert "is not a trained tokenizer" in capsys.readouterr().err
    assert (tmp_path / "mine" / "precious").exists()


def test_a_terminal_gets_a_bar_for_each_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with os.fdopen(theirs, "w") as terminal, monkeypatch.context() as patched:
        patched.setattr("sys.stderr", terminal)
        with _progress(shown=True) as progress:
            progress("reading", 1, None)
            progress("training", 3, 7)
            # The bars are drawn ten times a second, and what they hold at the end is wiped away.
            shown = read_until(ours, lambda shown: "3/7" in shown)
    os.close(ours)
    assert "reading documents" in shown
    assert "3/7" in shown
