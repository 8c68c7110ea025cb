"""What the page may override: no path and no address, by whichever field; not even whether a file is there is told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from shardyard.dashboard.web import cluster
from shardyard.dashboard.web.overrides import problems_of_page
from support.dash_cases import served, write_run
from support.secrets import SECRETS, SENTENCES

REFUSED = [
    "data.train=[{path: /etc/passwd}]",
    "data.train=[{path: /etc/passwd, holdout: 0.1}]",
    "data.train.0.path=/etc/passwd",
    "data.train.0={path: ~/.config/secrets.json}",
    "data.validation=[{path: http://169.254.169.254/latest/meta-data/x.json}]",
    "data.train=[{path: ../../x.jsonl}]",
    "data.train=[{path: x.jsonl}]",
    "data={train: [{path: s3://bucket/x.parquet}]}",
    "tokenizer=/srv/tokenizer",
    "tokenizer=spec.yaml",
    "model.pretrained=/srv/model",
    "model.pretrained=./model",
    "model.config.name=/srv/model",
    "model.config={_name_or_path: file:///srv/model}",
    "distillation.teacher=/srv/model",
    "extends=/etc/passwd",
    "cluster.address=10.0.0.1:6379",
    "cluster={address: evil.example:6379}",
]


@pytest.mark.parametrize("override", REFUSED)
def test_paths_and_addresses_are_refused(override: str) -> None:
    (problem,) = problems_of_page(["train.steps=3", override])
    assert "cannot be set in the page" in problem.message
    assert problem.where.startswith("-s ")


@pytest.mark.parametrize(
    "override",
    [
        "train.steps=3",
        "data.train=[{path: roneneldan/TinyStories}]",
        "data.train=[{source: python-docs}]",
        "tokenizer=bytes",
        "tokenizer=gpt2",
        "model.pretrained=openai-community/gpt2@main",
        "model.pretrained=run:gpt-quickstart",
        "model.pretrained=",
        "cluster.address=auto",
        "sample.prompts=[/usr/bin is where, 'https://x']",
        "paper=https://arxiv.org/abs/1",
        "tracking.tags=[/a]",
        "no override",
        "data.train=[{path: ",
    ],
)
def test_names_and_numbers_are_the_pages_to_change(override: str) -> None:
    assert problems_of_page([override]) == []


@pytest.mark.parametrize("kind", SECRETS)
def test_secrets_never_become_part_of_a_command_line(kind: str) -> None:
    for sentence in SENTENCES[kind]:
        (problem,) = problems_of_page([f"description='{sentence.format(SECRETS[kind])}'"])
        assert "looks like a secret" in problem.message
        assert SECRETS[kind] not in str(problem)


def test_a_name_that_is_a_folder_here_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "set").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert problems_of_page(["data.train=[{path: owner/set}]"])
    assert problems_of_page(["data.train=[{path: owner/other}]"]) == []


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    write_run(tmp_path / "runs", "one-1")
    with served(tmp_path / "runs", tmp_path / "cache") as made:
        yield made


@pytest.mark.parametrize("override", REFUSED)
def test_the_page_neither_plans_nor_submits_them(
    client: TestClient, override: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_apart", None)
    monkeypatch.setattr(cluster, "load_recipe", None)
    found = client.post("/api/recipes/check", json={"name": "gpt/quickstart", "overrides": [override]}).json()
    assert found["plan"] is None
    assert "cannot be set in the page" in found["problems"][0]["message"]
    answer = client.post("/api/jobs", json={"recipe": "gpt/quickstart", "overrides": [override]})
    assert answer.status_code == 400
    assert "cannot be set in the page" in answer.json()["error"]
