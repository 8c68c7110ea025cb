"""Relative paths and patterns of a submitted recipe: found where the job runs, or refused before it is sent."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardyard.cli import main as cli
from shardyard.errors import UsageError
from shardyard.launch.jobs.named_files import refuse_unseen_files, relative_files
from shardyard.recipe.loading.load import load_recipe
from shardyard.recipe.schema import Recipe
from support.cli import write_recipe


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with data/part-0.jsonl and a recipe."""
    (tmp_path / "data" / "deep").mkdir(parents=True)
    for name in ("part-0.jsonl", "deep/part-1.jsonl"):
        (tmp_path / "data" / name).write_text('{"text": "one"}\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recipe_for(pattern: str, folder: Path) -> Recipe:
    return load_recipe(str(write_recipe(folder, Path("data/part-0.jsonl"))), [f"data.train.0.path={pattern}"]).recipe


PATTERNS = ["data/part-0.jsonl", "data/*.jsonl", "data/**/*.jsonl", "data/part-[0-9].jsonl", "dat?"]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_files_of_this_folder_do_not_go_to_a_cluster_by_themselves(pattern: str, here: Path) -> None:
    recipe = recipe_for(pattern, here)
    assert list(relative_files(recipe)) == [("data.train[0].path", pattern)]
    with pytest.raises(UsageError, match=r"data.train\[0\].path is .*cluster does not see: upload the folder"):
        refuse_unseen_files(recipe, "travel", None)
    with pytest.raises(UsageError, match="which pods do not see"):
        refuse_unseen_files(recipe, "none", here)
    refuse_unseen_files(recipe, "share", None)  # it runs in this folder, which its nodes share
    refuse_unseen_files(recipe, "travel", here)
    with pytest.raises(UsageError, match="has no such files: name the folder that the path starts from"):
        refuse_unseen_files(recipe, "travel", here / "data" / "deep")
    with pytest.raises(UsageError, match="has no such files"):
        refuse_unseen_files(recipe, "share", here / "data" / "deep")


def test_absolute_paths_and_names_are_left_alone(here: Path) -> None:
    (here / "bytes").write_text("a file that is called like a tokenizer")
    assert not list(relative_files(recipe_for(f"{here}/data/*.jsonl", here)))


def test_files_that_are_ignored_do_not_travel(here: Path) -> None:
    (here / ".gitignore").write_text("data/\n")
    with pytest.raises(UsageError, match="are not uploaded, because they are ignored there"):
        refuse_unseen_files(recipe_for("data/*.jsonl", here), "travel", here)


def test_submit_refuses_a_pattern(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(here, Path("data/part-0.jsonl"))
    line = ["submit", str(recipe), "-s", "data.train.0.path=data/*.jsonl", "--dry-run", "job.json"]
    assert cli.run(line) == 2
    assert "upload the folder with --working-dir ." in capsys.readouterr().err
    assert not (here / "job.json").exists()
    assert cli.run([*line, "--working-dir", "."]) == 0
    assert (here / "job.json").exists()
