"""The data of a recipe for the page: what is refused before anything is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardyard.dashboard.web.answers import BadRequestError
from shardyard.dashboard.web.data_page import DataPages, inspected
from shardyard.errors import UsageError
from shardyard.recipe.loading.load import dump_recipe
from support.dash_cases import served
from support.tiny import tiny_recipe, write_corpus


def test_what_is_asked_is_checked(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    with served(tmp_path / "runs", tmp_path / "cache") as client:

        def ask(**body: object) -> tuple[int, str]:
            answer = client.post("/api/recipes/data", json={"name": "gpt/quickstart", **body})
            return answer.status_code, answer.json().get("error", "")

        assert ask(name="nothing")[0] == 404
        assert ask(name="../../etc/passwd")[0] == 404
        for rows in (0, 17, "6", True):
            assert ask(rows=rows) == (400, "rows is a number from 1 to 16")
        for override in ("data.train=[{path: /etc/passwd}]", "data.exclude=/etc/passwd", "data.exclude=list.txt"):
            code, error = ask(overrides=[override])
            assert code == 400
            assert "paths and addresses cannot be set in the page" in error


def test_files_elsewhere_are_not_read(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(dump_recipe(tiny_recipe(corpus)))
    (tmp_path / "runs").mkdir()
    with pytest.raises(UsageError, match="lies elsewhere"):
        inspected(str(recipe), (), 3, (tmp_path / "runs",))
    recipe.write_text(
        dump_recipe(tiny_recipe(corpus, data={"train": [{"path": "https://a.example/x.jsonl", "holdout": 0.1}]}))
    )
    with pytest.raises(UsageError, match="is the address"):
        inspected(str(recipe), (), 3, (tmp_path,))


def test_another_recipe_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shardyard.dashboard.web.data_page.WAIT_SECONDS", 0.01)
    pages = DataPages([tmp_path])
    with pages._lock, pytest.raises(BadRequestError, match="another recipe"):
        pages.of("gpt/quickstart", [], 3, again=False)
