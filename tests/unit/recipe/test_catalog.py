"""Finding what comes with Shardyard, in a checkout and in an installed wheel."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shardyard.errors import UsageError
from shardyard.recipe.catalog import shipped

REPOSITORY = Path(__file__).resolve().parents[3]


def test_a_checkout_has_its_folders_at_the_top() -> None:
    assert shipped.share_folder("recipes") == REPOSITORY / "recipes"
    assert shipped.share_folder("tokenizers") == REPOSITORY / "tokenizers"
    assert shipped.share_folder("cluster") == REPOSITORY / "cluster"


def test_a_wheel_carries_them_inside(tmp_path: Path) -> None:
    (tmp_path / "shardyard" / "share" / "recipes").mkdir(parents=True)
    package = tmp_path / "shardyard"
    assert shipped.share_folder("recipes", package) == package / "share" / "recipes"


def test_the_list_holds_every_recipe_file_and_no_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gpt/a.yaml", "gpt/_base.yaml", "moe/b.yaml", "schema.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setattr(shipped, "share_folder", lambda kind: tmp_path)
    assert [recipe.name for recipe in shipped.shipped_recipes()] == ["gpt/a", "moe/b"]
    assert shipped.shipped_file("gpt/_base") == tmp_path / "gpt" / "_base.yaml"


def test_the_list_of_this_checkout_is_complete() -> None:
    files = [path for path in (REPOSITORY / "recipes").rglob("*.yaml") if not path.name.startswith("_")]
    found = [*shipped.shipped_recipes(), *shipped.shipped_sweeps()]
    assert sorted(recipe.path for recipe in found) == sorted(files)
    assert "gpt/quickstart" in [recipe.name for recipe in shipped.shipped_recipes()]


@pytest.mark.parametrize("name", ["gpt/quickstart", "gpt/quickstart.yaml"])
def test_a_shipped_name_is_found_from_anywhere(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shipped.find_recipe(name) == REPOSITORY / "recipes" / "gpt" / "quickstart.yaml"


def test_an_existing_file_comes_before_a_shipped_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gpt").mkdir()
    (tmp_path / "gpt" / "quickstart.yaml").touch()
    monkeypatch.chdir(tmp_path)
    assert shipped.find_recipe("gpt/quickstart.yaml") == Path("gpt/quickstart.yaml")


def test_a_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").touch()
    assert shipped.find_recipe("~/mine.yaml") == tmp_path / "mine.yaml"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("gpt/quickstat", "did you mean 'gpt/quickstart'?"),
        ("quickstart", "did you mean 'gpt/quickstart'?"),
        ("recipes/gpt/quickstart2.yml", "`shardyard recipes list` shows all"),
        ("../../../etc/passwd.yaml", "no such file, nor a shipped recipe"),
    ],
)
def test_what_is_not_there_is_a_usage_error_with_the_nearest(
    name: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        shipped.find_recipe(name)
    assert hint in str(caught.value)


def test_names_never_leave_the_shipped_folders() -> None:
    assert shipped.shipped_file("../pyproject") is None
    assert shipped.shipped_file("/etc/passwd") is None
    assert shipped.find_tokenizer_spec("../recipes/gpt/quickstart") is None
    assert shipped.find_tokenizer_spec("no/such") is None


def test_tokenizer_specs_are_found_by_name() -> None:
    assert shipped.find_tokenizer_spec("bytes") == REPOSITORY / "tokenizers" / "bytes.yaml"
    assert "bytes" in shipped.tokenizer_specs()
    assert os.path.isfile(REPOSITORY / "tokenizers" / "bytes.yaml")
