"""Code that a run keeps: copies of the files that its recipe names, and what is said where the originals change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shardyard import plugins
from shardyard.engine.inference.load import recipe_of
from shardyard.errors import UsageError
from shardyard.launch.jobs.spec import spec_of
from shardyard.launch.jobs.submission import SubmitRequest
from shardyard.launch.run.prepare import recipe_in
from shardyard.launch.sweep.folder import SweepFolder
from shardyard.planning.architecture import Architecture
from shardyard.planning.plan import World, make_plan
from shardyard.recipe.code import origins, with_file_names
from shardyard.recipe.loading.load import LoadedRecipe, dump_recipe, load_recipe
from shardyard.recipe.schema import Recipe
from shardyard.recipe.sweep.load import load_sweep
from shardyard.tracking.files import read_jsonl
from shardyard.tracking.run.code import keep_code, report_changed_code, store_code
from shardyard.tracking.run.folder import RunFolder
from support.tiny import tiny_recipe, write_corpus

HOOK = "class Quiet: pass\n"


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """It names two files with the same name, and lies in the current folder."""
    monkeypatch.chdir(tmp_path)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(f"{HOOK}# {folder}\n", encoding="utf-8")
    hooks = [{"name": "a/mine.py:Quiet"}, {"name": "b/mine.py:Quiet"}]
    return tiny_recipe(write_corpus(tmp_path), hooks=hooks)


def run_of(recipe: Recipe, **fields: Any) -> RunFolder:
    text = dump_recipe(recipe)
    return RunFolder.create(Path("runs"), recipe.name, text, text, **fields)


def hook_files(recipe: Recipe) -> list[Path]:
    return [Path(hook.name.rpartition(":")[0]) for hook in recipe.hooks]


def notices(run: RunFolder) -> list[str]:
    return [str(event["text"]) for event in read_jsonl(run.events)] if run.events.exists() else []


def test_a_run_goes_on_with_the_copies_that_it_keeps(recipe: Recipe, tmp_path: Path) -> None:
    run = run_of(recipe, provenance={"packages": {}, "code": origins(recipe)})
    kept = keep_code(recipe, run)
    assert [path.read_text() for path in hook_files(kept)] == [f"{HOOK}# a\n", f"{HOOK}# b\n"]
    assert all(path.is_relative_to(run.path.resolve() / "code") for path in hook_files(kept))
    assert keep_code(kept, run) == kept
    for found in (recipe_in(run), recipe_of(run, trust=True), load_recipe(str(run.resolved)).recipe):
        assert found.hooks == kept.hooks
    report_changed_code(kept, run)
    assert notices(run) == []

    (tmp_path / "a" / "mine.py").write_text("changed", encoding="utf-8")
    (tmp_path / "b" / "mine.py").unlink()
    again = load_recipe(str(run.resolved)).recipe
    assert again.hooks == kept.hooks, "the originals are needed no more"
    assert keep_code(again, run) == kept


def recipe_named(folder: Path) -> Recipe:
    return tiny_recipe(folder / "corpus.jsonl", hooks=[{"name": f"{folder}/a/mine.py:Quiet"}])


def test_a_changed_original_is_reported_and_new_code_recorded(recipe: Recipe, tmp_path: Path) -> None:
    named = recipe_named(tmp_path)
    run = run_of(named, provenance={"packages": {}, "code": origins(named)})
    kept = keep_code(named, run)
    (tmp_path / "a" / "mine.py").write_text("changed", encoding="utf-8")
    report_changed_code(kept, run)
    assert notices(run) == [
        f"hooks[0].name: {tmp_path}/a/mine.py has changed since the run began; the run goes on with the copy in code/"
    ]
    more = keep_code(
        tiny_recipe(tmp_path / "corpus.jsonl", hooks=[*kept.model_dump()["hooks"], {"name": "b/mine.py:Quiet"}]), run
    )
    report_changed_code(more, run)
    assert run.info().provenance["code"].keys() == {"hooks[0].name", "hooks[1].name"}


def test_a_changed_package_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_hooks.py").write_text(HOOK, encoding="utf-8")
    recipe = tiny_recipe(write_corpus(tmp_path), hooks=[{"name": "my_hooks:Quiet"}])
    run = run_of(recipe, provenance={"packages": {}, "code": origins(recipe)})
    assert keep_code(recipe, run) == recipe
    (tmp_path / "my_hooks.py").write_text(f"{HOOK}# more\n", encoding="utf-8")
    report_changed_code(recipe, run)
    changed = "hooks[0].name: the code of my_hooks:Quiet has changed since the run began; the run goes on with "
    assert notices(run) == [f"{changed}my_hooks:Quiet as it is now"]


def test_a_moved_run_folder_finds_its_copies(recipe: Recipe, tmp_path: Path) -> None:
    run = run_of(recipe)
    kept = keep_code(recipe, run)
    # What is settled later writes resolved.yaml anew, with the paths of the copies.
    run.resolved.write_text(dump_recipe(kept), encoding="utf-8")
    run.path.rename(tmp_path / "moved")
    found = recipe_in(RunFolder(tmp_path / "moved"))
    assert [path.read_text() for path in hook_files(found)] == [f"{HOOK}# a\n", f"{HOOK}# b\n"]
    assert hook_files(found)[0].is_relative_to(tmp_path / "moved")


def request_of(recipe: Recipe) -> SubmitRequest:
    sizes = Architecture("gpt2", 1000, 900, 100, 2, 32, 2, 257, 64)
    loaded = LoadedRecipe(recipe, Path("recipe.yaml"), "", (), ())
    plan = make_plan(recipe, sizes, World(size=1, gpu=False))
    return SubmitRequest("recipe.yaml", (), loaded, plan, Path("runs"), recipe.name)


def test_a_job_carries_the_text_of_its_files_wherever_it_runs(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(request_of(recipe))
    assert spec["code"] == {"a/mine.py": f"{HOOK}# a\n", "b/mine.py": f"{HOOK}# b\n"}
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run = RunFolder.create(Path("runs"), "tiny", "", spec["resolved_text"])
    store_code(spec["code"], run)
    kept = keep_code(recipe_in(run), run)
    assert [path.read_text() for path in hook_files(kept)] == [f"{HOOK}# a\n", f"{HOOK}# b\n"]
    assert with_file_names(kept) == with_file_names(Recipe.model_validate(spec["recipe"]))
    assert json.loads((run.path / "code" / "files.json").read_text()).keys() >= {"a/mine.py", "b/mine.py"}


def test_code_with_a_secret_does_not_travel(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "a" / "mine.py").write_text("TOKEN = 'hf_" + "a1B2" * 9 + "'\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"a/mine.py, which .* holds what looks like a secret.*environment variable"):
        spec_of(request_of(recipe))


def test_the_hash_of_a_package_is_taken_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / "loud_package"
    package.mkdir()
    for name in ("__init__.py", "hooks.py"):
        (package / name).write_text("raise SystemExit('was imported')", encoding="utf-8")
    found = plugins.origin("hooks", "loud_package.hooks:Hook")
    assert found.sha256 == plugins.sha256_of([package / "__init__.py", package / "hooks.py"])
    with pytest.raises(UsageError, match="there is no module 'quiet_package' here; install the package"):
        plugins.origin("hooks", "quiet_package.hooks:Hook")


def test_trials_of_a_sweep_find_the_code_from_any_folder(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    sweep = "name: rates\nrecipe: tiny.yaml\nparameters: {optimizer.lr: {values: [0.1, 0.2]}}\n"
    (tmp_path / "sweep.yaml").write_text(sweep, encoding="utf-8")
    folder = SweepFolder.create(tmp_path / "runs", load_sweep(str(tmp_path / "sweep.yaml")))
    assert all(path.is_absolute() for path in hook_files(load_recipe(str(folder.base)).recipe))
