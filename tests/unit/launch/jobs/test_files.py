"""Which files of a working directory travel: no secrets, no runs, nothing that links lead to outside."""

from __future__ import annotations

import io
import json
import subprocess
import zipfile
from pathlib import Path

import pytest

from shardyard.cli.main import run
from shardyard.errors import UsageError
from shardyard.launch.jobs.files import rule_of, select
from shardyard.launch.jobs.package import checked_files, in_short, listing, package
from support.cli import write_recipe
from support.secrets import SECRETS
from support.tiny import write_corpus

STAYING = (
    *(".env", ".env.local", "prod.env", "deploy/.env", "server.pem", "tls/server.key", "id_rsa", "id_ed25519.pub"),
    *(".netrc", ".aws/credentials", ".ssh/config", "a/.aws/config", ".config/gcloud/x.json", "credentials.json"),
    *(".git-credentials", "service-account-1.json", "runs/a-1/run.json", "runs/notes.txt", "other/a-1/run.json"),
    *("wandb/x", ".venv/bin/x", "kept-runs/x.bin", "terraform.tfstate", "token", "odd-name.txt", "secrets.yaml"),
)


@pytest.fixture(params=[False, True], ids=["folder", "repository"])
def person(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder as people have them: data among secrets, runs, and links to all of these."""
    folder = tmp_path / "work"
    for name in (*STAYING, "data/corpus.jsonl", "recipe.yaml", ".env.example"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"planted {name}")
    (folder / "odd-name.txt").write_text("-----BEGIN OPENSSH PRIVATE " + "KEY-----\nplanted\n")
    (tmp_path / "outside.txt").write_text("planted outside")
    for name, target in {
        "leaves.txt": "../outside.txt",
        "absolute.txt": tmp_path / "outside.txt",
        "to-env.txt": ".env",
        "to-aws.txt": ".aws/credentials",
        "to-folder": "..",
        "to-nothing": "nowhere",
        "fine.jsonl": "data/corpus.jsonl",
    }.items():
        (folder / name).symlink_to(target)
    if request.param:
        subprocess.run(["git", "init", "-q", str(folder)], check=True)
        subprocess.run(["git", "-C", str(folder), "add", "-f", "."], check=True, capture_output=True)
    return folder


def chosen(folder: Path) -> list[str]:
    found = checked_files(folder, never=[folder / "kept-runs", folder / "token"])
    return [str(path.relative_to(folder)) for path, _ in found.files]


def test_secrets_runs_and_what_links_lead_to_stay(person: Path) -> None:
    assert chosen(person) == ["data/corpus.jsonl", "fine.jsonl", "recipe.yaml"]
    found = checked_files(person, never=[person / "kept-runs", person / "token"])
    _, content = package("{}", found, person)
    archive = zipfile.ZipFile(io.BytesIO(content))
    texts = {name: archive.read(name).decode() for name in archive.namelist()}
    assert sorted(texts) == ["data/corpus.jsonl", "fine.jsonl", "job.json", "recipe.yaml"]
    assert texts["fine.jsonl"] == "planted data/corpus.jsonl"
    told = dict(found.left_out)
    assert {".env", ".aws/", "runs/", "tls/server.key", "a/.aws/"} <= told.keys()
    assert told["other/a-1/"] == "a run folder"
    assert told["odd-name.txt"] == "holds a private key"
    assert told["leaves.txt"] == told["absolute.txt"] == told["to-folder"] == "a link that leaves the folder"
    assert told["to-env.txt"] == told["to-aws.txt"] == "a link to what stays here"
    assert told["to-nothing"] == "a link to nothing"
    assert told["kept-runs/"] == told["token"] == "runs and tokens stay here"


def test_a_list_of_ones_own_adds_and_takes_back(person: Path) -> None:
    (person / ".shardyardignore").write_text("# mine\n\n!.env.example\n/data/*.jsonl\n!deploy/.env\n")
    names = set(chosen(person))
    assert {".env.example", "deploy/.env", "recipe.yaml"} <= names
    assert not names & {"data/corpus.jsonl", ".env", "fine.jsonl"}


def test_a_gitignore_counts_outside_of_a_repository(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("*.bin\n")
    (tmp_path / "weights.bin").write_text("")
    assert [path.name for path, _ in select(tmp_path).files] == [".gitignore"]


@pytest.mark.parametrize(
    ("line", "matching", "others"),
    [
        ("*.bin", ["a.bin", "b/c/a.bin"], ["a.bin.txt", "bin"]),
        ("/top.txt", ["top.txt"], ["a/top.txt"]),
        ("a/b", ["a/b"], ["c/a/b"]),
        ("a/**/b", ["a/b", "a/x/y/b"], ["b", "a/xb"]),
        ("**/logs", ["logs", "a/logs"], ["logs2"]),
        ("logs/**", ["logs/a", "logs/a/b"], ["logs"]),
        ("data?.txt", ["data1.txt"], ["data.txt", "data12.txt"]),
        ("x[0-9].[!t]xt", ["x1.axt", "a/x2.bxt"], ["xa.axt", "x1.txt"]),
        ("a*b", ["ab", "axb"], ["a/c"]),
        ("\\#odd", ["#odd"], ["odd"]),
        ("name.with+signs(1)", ["name.with+signs(1)"], ["nameXwith+signs(1)"]),
    ],
)
def test_patterns_are_those_of_git(line: str, matching: list[str], others: list[str], tmp_path: Path) -> None:
    rule = rule_of(line)
    assert rule is not None
    assert [name for name in matching if not rule.matches.fullmatch(name)] == []
    assert [name for name in others if rule.matches.fullmatch(name)] == []
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / ".gitignore").write_text(f"{line}\n")
    command = ["git", "-C", str(tmp_path), "check-ignore", "--no-index", *matching, *others]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert sorted(asked.stdout.split()) == sorted(matching)


def test_lines_that_are_no_patterns() -> None:
    assert [rule_of(line) for line in ("", "  ", "# comment", "/")] == [None] * 4
    with pytest.raises(UsageError, match="is not a pattern"):
        rule_of("[z-a]")


def test_what_travels_is_told_before(person: Path) -> None:
    found = checked_files(person, never=[person / "token", person / "kept-runs"])
    told = in_short(person, found)
    assert "3 files" in told
    assert "excluded: " in told
    assert " more (--dry-run FILE lists all, .shardyardignore changes it)" in told
    lines = list(listing(person, found))
    assert any(line.endswith(" B  data/corpus.jsonl") for line in lines)
    assert "     stays  .env  (*.env)" in lines
    assert len(lines) == len(found.files) + len(found.left_out)


def test_a_dry_run_lists_what_would_be_sent(
    person: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHARDYARD_HOME", str(person / "token"))
    recipe = write_recipe(tmp_path, write_corpus(person))
    command = ["submit", str(recipe), "--runs-dir", str(person / "kept-runs"), "--working-dir", str(person)]
    assert run([*command, "--dry-run", str(tmp_path / "job.json")]) == 0
    said = capsys.readouterr().err
    written = json.loads((tmp_path / "job.json").read_text())
    corpus = next(name for name in written["files"] if name.startswith("corpus-"))
    assert sorted(written["files"]) == [corpus, "data/corpus.jsonl", "fine.jsonl", "recipe.yaml"]
    assert written["files"]["data/corpus.jsonl"] == len("planted data/corpus.jsonl")
    assert written["left_out"]["kept-runs/"] == "runs and tokens stay here"
    for line in (
        " B  data/corpus.jsonl",
        "stays  .aws/  (.aws/)",
        "stays  leaves.txt  (a link that leaves the folder)",
    ):
        assert line in said
    assert "planted .env" not in json.dumps(written)
    assert run([*command, "--name", SECRETS["github"]]) == 2
    said = capsys.readouterr().err
    assert "looks like a secret" in said
    assert SECRETS["github"] not in said
