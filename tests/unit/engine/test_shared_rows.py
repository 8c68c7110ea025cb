"""Held-out rows are made by one rank and read by the others, and by later starts."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from shardyard.data.stream import held_out as held_out_module
from shardyard.data.stream import streams
from shardyard.data.stream.held_out import HeldOut
from shardyard.data.tokenizers.tokenizer import fingerprint
from shardyard.engine import shared_rows
from shardyard.engine.components import held_out, make_components
from shardyard.errors import DataError, UnavailableError
from shardyard.recipe.loading.load import load_recipe
from shardyard.recipe.schema import Recipe
from shardyard.tracking.run.folder import RunFolder
from support.data_cases import documents, two_separators, write_jsonl


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    path = write_jsonl(tmp_path / "data", [documents(400)])
    source = f"{{path: {path}, holdout: 0.2}}"
    overrides = [
        f"data.train=[{source}]",
        "data.sequence_length=16",
        "evaluate.rows=12",
        "tokenizer=bytes",
        "data.validation=[]",
    ]
    return load_recipe("gpt/quickstart", overrides).recipe


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The streams that were opened to make rows."""
    opened: list[int] = []
    stream = streams.Stream

    def count(*given: Any) -> streams.Stream:
        opened.append(1)
        return stream(*given)

    monkeypatch.setattr(held_out_module, "Stream", count)
    return opened


@dataclass
class _Meeting:
    """Two ranks in threads, which meet for each broadcast."""

    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(2, timeout=30))
    value: Any = None

    def mesh(self, rank: int) -> Any:
        def from_first(value: Any) -> Any:
            if rank == 0:
                self.value = value
            self.barrier.wait()
            told = self.value
            self.barrier.wait()
            return told

        return SimpleNamespace(world=SimpleNamespace(size=2), is_first=rank == 0, from_first=from_first)


def on_two_ranks(recipe: Recipe, folder: RunFolder) -> list[HeldOut | Exception]:
    meeting, components = _Meeting(), make_components(recipe)

    def rank(number: int) -> HeldOut | Exception:
        try:
            return shared_rows.shared_held_out(recipe, components, folder, meeting.mesh(number))
        except DataError as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(rank, range(2)))


def same(one: HeldOut, other: HeldOut) -> bool:
    tables = zip(one.rows, other.rows, strict=True)
    return (
        all(row.keys() == its.keys() and all((row[n] == its[n]).all() for n in row) for row, its in tables)
        and one.rows[0]["labels"].dtype == other.rows[0]["labels"].dtype
        and (one.row_sources, one.left_out, one.sources) == (other.row_sources, other.left_out, other.sources)
        and one.describe() == other.describe()
    )


def test_one_rank_makes_the_rows_and_later_starts_read_them(recipe: Recipe, tmp_path: Path, made: list[int]) -> None:
    folder = RunFolder(tmp_path / "run")
    first, second = cast(list[HeldOut], on_two_ranks(recipe, folder))
    assert len(made) == 1
    plain = shared_rows.held_out(recipe, make_components(recipe))
    assert same(first, second)
    assert same(first, plain)
    assert first.num_rows == 12
    made.clear()
    again, _ = cast(list[HeldOut], on_two_ranks(recipe, folder))
    assert same(again, plain)
    assert made == []
    assert [path.name for path in folder.path.iterdir()] == ["held-out.safetensors"]


@pytest.mark.parametrize("change", ["recipe", "data", "damaged", "truncated"])
def test_rows_are_made_anew_if_anything_they_depend_on_has_changed(
    recipe: Recipe, tmp_path: Path, made: list[int], change: str
) -> None:
    folder = RunFolder(tmp_path / "run")
    on_two_ranks(recipe, folder)
    content = folder.held_out.read_bytes()
    if change == "recipe":
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"shuffle_window": 7})})
    elif change == "data":
        write_jsonl(tmp_path / "data", [documents(401)])
    else:
        folder.held_out.write_bytes(content[: len(content) // 2] if change == "truncated" else b"x" * 99)
    made.clear()
    first, second = cast(list[HeldOut], on_two_ranks(recipe, folder))
    assert len(made) == 1
    assert same(first, second)
    assert same(first, shared_rows.held_out(recipe, make_components(recipe)))


def test_a_run_folder_that_cannot_be_written(
    recipe: Recipe, tmp_path: Path, made: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "run").write_text("")
    first, second = cast(list[HeldOut], on_two_ranks(recipe, RunFolder(tmp_path / "run")))
    assert same(first, second)
    assert len(made) == 2
    assert "cannot be kept" in caplog.text


@pytest.mark.parametrize("kind", [DataError, UnavailableError])
def test_every_rank_has_the_error_of_the_first(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[DataError]
) -> None:
    def fail(*_: object, **__: object) -> HeldOut:
        raise kind("it is gone")

    monkeypatch.setattr(shared_rows, "held_out", fail)
    found = on_two_ranks(recipe, RunFolder(tmp_path / "run"))
    assert [(type(error), str(error)) for error in found] == [(kind, "it is gone")] * 2


def test_ranks_hear_from_the_first_while_it_reads(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A collective has a time limit; making the rows has none."""
    going_on, plain = threading.Event(), shared_rows.held_out
    told: list[object] = []

    def slow(*given: Any, **options: Any) -> HeldOut:
        going_on.wait(30)
        return plain(*given, **options)

    def state(made: Any) -> Any:
        found = real(made)
        if made is not None:
            told.append(found)
            if len(told) == 3:
                going_on.set()
        return found

    real = shared_rows._state
    monkeypatch.setattr(shared_rows, "REPORT_SECONDS", 0.01)
    monkeypatch.setattr(shared_rows, "held_out", slow)
    monkeypatch.setattr(shared_rows, "_state", state)
    first, second = cast(list[HeldOut], on_two_ranks(recipe, RunFolder(tmp_path / "run")))
    assert told[:3] == ["", "", ""]
    assert told[-1] == ("made", "")
    assert same(first, second)


def test_a_shorter_run_and_an_evaluation_read_the_rows_that_are_there(
    recipe: Recipe, tmp_path: Path, made: list[int]
) -> None:
    """A measurement before a run is one of other steps, and an evaluation after it has the exported configuration."""
    file = tmp_path / "held-out.safetensors"
    components = make_components(recipe)
    rows = held_out(recipe, components, file=file)
    written = file.read_bytes()
    train = recipe.train.model_copy(update={"steps": 3})
    cluster = recipe.cluster.model_copy(update={"workers": 1})
    shorter = recipe.model_copy(update={"name": "other", "train": train, "cluster": cluster})
    assert same(held_out(shorter, components, file=file), rows)
    config = components.config
    config.architectures, config.transformers_version, config._name_or_path = ["GPT2LMHeadModel"], "0", "/elsewhere"
    made_with = fingerprint(components.tokenizer)
    exported = replace(components, config=config, tokenizer=two_separators())
    assert same(held_out(recipe, exported, file=file, made_with=made_with), rows)
    assert len(made) == 1
    assert held_out(recipe, components, 5, file=file, made_with=made_with).num_rows == 5
    assert len(made) == 2
    assert file.read_bytes() == written
