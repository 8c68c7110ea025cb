"""Secrets in text: more than ten kinds, planted where people leave them, and none in what is shown or written."""

from __future__ import annotations

import base64
import json
import os
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from shardyard import redaction
from shardyard.cli.main import run
from shardyard.data.sources.sources import open_source
from shardyard.errors import DataError, Problem, RecipeError, UsageError
from shardyard.launch.jobs import secrets
from shardyard.launch.jobs.spec import spec_of
from shardyard.launch.jobs.submission import SubmitRequest
from shardyard.launch.run.output import redirect_output
from shardyard.recipe.loading.load import load_recipe
from shardyard.recipe.schema import Source
from shardyard.recipe.sections.watching import Wandb
from shardyard.redaction import HIDDEN, holds_secret, scrub, scrub_all
from shardyard.tracking.files import JsonlWriter
from shardyard.tracking.run.folder import RunFolder
from shardyard.tracking.wandb.mirror import WandbMirror
from support.cli import write_recipe
from support.secrets import SECRETS, SENTENCES
from support.tiny import write_corpus


@pytest.mark.parametrize("kind", SECRETS)
def test_each_kind_is_hidden_wherever_it_stands(kind: str) -> None:
    secret = SECRETS[kind]
    for sentence in SENTENCES[kind]:
        text = sentence.format(secret)
        assert secret in text
        assert secret not in scrub(text), text
        assert HIDDEN in scrub(text)
        assert scrub(scrub(text)) == scrub(text)


@pytest.mark.parametrize(
    "text",
    [
        "step 120, loss 3.21, tokens/s: 123456.7",
        "https://host:8080/data/train.jsonl?version=3",
        "max_tokens=16384000",
        "eos_token: <|endoftext|>",
        "tokenizer: bytes",
        "commit 81d41f7a0c6f2b9b1f0d6e1a1c2b3c4d5e6f7a8b",
        "a task-specific one",
        "https://${DATA_LOGIN}@host/x.jsonl?sig=${DATA_SAS}",
        "https://user:${DATA_PASS}@host/x.jsonl",
        "owner/name@revision",
        "Basic understanding of bearer certificates",
        "the key: it opens the door",
        "mail me@example.org",
        "passwords are long",
        "monkey=banana123",
        "a secret: nobody knows",
        "RAY_AUTH_MODE disabled",
    ],
)
def test_what_is_no_secret_stays(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert scrub(text) == text
    assert not holds_secret(text)


def test_values_of_secret_variables_are_hidden_whatever_their_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "correct horse battery")
    monkeypatch.setenv("SSH_AUTH_SOCK", "/tmp/agent.1")
    assert scrub("it is correct horse battery, at /tmp/agent.1") == f"it is {HIDDEN}, at /tmp/agent.1"


def test_plain_data_keeps_its_shape() -> None:
    secret = SECRETS["hugging face"]
    value = {"a": [1, f"x {secret}", (secret, None)], "b": {"c": 1.5}}
    assert scrub_all(value) == {"a": [1, f"x {HIDDEN}", (HIDDEN, None)], "b": {"c": 1.5}}
    clean = {"a": [1, "x"], "b": {"c": 1.5}}
    assert scrub_all(clean) is clean


@pytest.mark.parametrize("kind", SECRETS)
def test_errors_logs_events_and_run_folders_hold_none(kind: str, tmp_path: Path) -> None:
    text = SENTENCES[kind][0].format(SECRETS[kind])
    assert SECRETS[kind] not in str(UsageError(text))
    problems = RecipeError("x.yaml", [Problem("x.yaml:1", "name", text)])
    assert SECRETS[kind] not in str(problems) + repr(problems.problems)
    folder = RunFolder.create(tmp_path, "run", f"name: x  # {text}\n", "name: x\n", provenance={"command": [text]})
    folder.update(problem=text, job={"name": text, "tags": [text]})
    writer = JsonlWriter(folder.events)
    writer.append({"kind": "failure", "message": text})
    writer.close()
    for path in (folder.recipe, folder.info_file, folder.events):
        assert HIDDEN in path.read_text()
        assert SECRETS[kind] not in path.read_text(), path


def test_a_log_of_a_process_holds_none(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    secret = SECRETS["signature"]
    saved, streams = (os.dup(1), os.dup(2)), (sys.stdout, sys.stderr)
    try:
        redirect_output(tmp_path / "rank-0.log")
        sys.stdout.write(f"GET https://host/x.jsonl?sig={secret}\n")
        sys.stderr.write(f"cannot read https://host/x.jsonl?sig={secret}\n")
        sys.stdout.flush()
    finally:
        sys.stdout, sys.stderr = streams
        for descriptor, number in zip(saved, (1, 2), strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)
    assert (tmp_path / "rank-0.log").read_text() == (
        f"GET https://host/x.jsonl?sig={HIDDEN}\ncannot read https://host/x.jsonl?sig={HIDDEN}\n"
    )


PLACES = {
    "path": {"data": {"train": [{"path": "https://host/x.jsonl?sig=HERE", "holdout": 0.1}]}},
    "local path": {"data": {"train": [{"path": "/srv/HERE/x.jsonl", "holdout": 0.1}]}},
    "tag": {"tracking": {"tags": ["HERE"]}},
    "name": {"name": "run-HERE"},
    "group": {"tracking": {"wandb": {"group": "HERE"}}},
    "description": {"description": "with HERE"},
    "prompt": {"sample": {"prompts": ["use HERE"]}},
    "configuration": {"model": {"family": "gpt2", "config": {"n_layer": 2, "note": "HERE"}}},
}


@pytest.mark.parametrize("place", PLACES)
def test_recipes_with_secrets_are_refused_and_do_not_repeat_them(place: str, tmp_path: Path) -> None:
    secret = SECRETS["hugging face"]
    path = write_recipe(
        tmp_path, write_corpus(tmp_path), **json.loads(json.dumps(PLACES[place]).replace("HERE", secret))
    )
    with pytest.raises(RecipeError, match="holds what looks like a secret") as refused:
        load_recipe(str(path))
    assert secret not in str(refused.value)


def test_an_override_with_a_secret_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_recipe(tmp_path, write_corpus(tmp_path))
    secret = SECRETS["login"]
    code = run(["validate", str(path), "-s", f"data.train=[{{path: 'https://{secret}@host/x.jsonl', holdout: 0.1}}]"])
    said = capsys.readouterr()
    assert code == 2
    assert "${DATA_LOGIN}" in said.out + said.err
    assert secret not in said.out + said.err


def test_a_run_of_before_is_resumed_with_another_url(tmp_path: Path) -> None:
    url = f"https://{SECRETS['login']}@host/x.jsonl"
    path = write_recipe(tmp_path, write_corpus(tmp_path), data={"train": [{"path": url, "holdout": 0.1}]})
    with pytest.raises(RecipeError, match=r"DATA_LOGIN"):
        load_recipe(str(path))
    loaded = load_recipe(str(path), ["data.train.0.path=https://${DATA_LOGIN}@host/x.jsonl"])
    assert loaded.recipe.data.train[0].path == "https://${DATA_LOGIN}@host/x.jsonl"


def test_only_variables_for_data_are_filled_into_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def recipe(url: str) -> str:
        section = {"train": [{"path": url, "holdout": 0.1}], "sequence_length": 32}
        return str(write_recipe(tmp_path, write_corpus(tmp_path), data=section))

    with pytest.raises(RecipeError, match="names the variable AWS_SECRET_ACCESS_KEY; only those that begin with DATA_"):
        load_recipe(recipe("https://host/x.jsonl?x=${AWS_SECRET_ACCESS_KEY}"))
    loaded = load_recipe(recipe("https://${DATA_LOGIN}@host/x.jsonl?sig=${DATA_SAS}")).recipe
    assert secrets.of_recipe(loaded) == {"DATA_LOGIN", "DATA_SAS"}
    environment = {"DATA_LOGIN": "a:b", "DATA_OTHER": "c", "HOME": "/", "HF_TOKEN": "t"}
    assert secrets.to_carry(environment, loaded) == {"DATA_LOGIN": "a:b", "HF_TOKEN": "t"}
    assert secrets.carried({**environment, "SHARDYARD_CARRIED": "HF_TOKEN"}, loaded) == {
        "HF_TOKEN": "t",
        "DATA_LOGIN": "a:b",
    }
    monkeypatch.delenv("DATA_LOGIN", raising=False)
    with pytest.raises(DataError, match="names the variable DATA_LOGIN, which is not set"):
        open_source(loaded.data.train[0], training=True)


def test_the_file_of_a_job_holds_none(tmp_path: Path) -> None:
    from shardyard.launch.run.plans import plan_of

    path = write_recipe(tmp_path, write_corpus(tmp_path))
    planted = "".join(f"# {SENTENCES[kind][0].format(SECRETS[kind])}\n".replace("\n", " ") + "\n" for kind in SECRETS)
    path.write_text(planted + path.read_text())
    loaded = load_recipe(str(path))
    made = plan_of(loaded)
    spec = json.dumps(spec_of(SubmitRequest(str(path), ("a=b",), loaded, made, tmp_path, SECRETS["github"])))
    assert HIDDEN in spec
    assert not [kind for kind, secret in SECRETS.items() if secret in spec]
    recipe = YAML(typ="safe").load(json.loads(spec)["recipe_text"])
    assert recipe["name"] == "tiny"


def test_what_wandb_is_told_holds_none(tmp_path: Path) -> None:
    secret = SECRETS["slack"]
    mirror = WandbMirror(Wandb(), "id", "name", [secret], {"a": {"b": [f"x {secret}"]}}, tmp_path)
    assert mirror._identity.tags == [HIDDEN]
    assert mirror._identity.config == {"a": {"b": [f"x {HIDDEN}"]}}


class _Refusing(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(403)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def refusing() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Refusing) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_url_that_is_refused_is_told_without_its_secrets(refusing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_LOGIN", "somebody:longpassword")
    monkeypatch.setenv("DATA_ODD", "plainvalue")
    monkeypatch.setattr(redaction, "_remembered", set())
    path = f"http://${{DATA_LOGIN}}@{refusing}/x.jsonl?odd=${{DATA_ODD}}"
    with pytest.raises(DataError) as told:
        open_source(Source(path=path), training=True)
    assert "longpassword" not in str(told.value)
    assert "plainvalue" not in str(told.value)
    assert "longpassword" not in scrub("again somebody:longpassword")


def test_private_keys_of_google_are_hidden_in_json() -> None:
    key = json.dumps({"type": "service_account", "private_key": SECRETS["google"]})
    assert base64.b64encode(b"x" * 48).decode() not in scrub(key)
