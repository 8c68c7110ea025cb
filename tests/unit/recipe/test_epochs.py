"""Training lengths in passes over the data: rows are counted, steps follow and are fixed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shardyard.data.mixture import sizes
from shardyard.data.stream import count
from shardyard.data.stream.loader import TrainLoader
from shardyard.engine.components import make_components
from shardyard.errors import DataError, RecipeError
from shardyard.launch.run.prepare import prepare
from shardyard.planning.plan import World, fixed
from shardyard.recipe.schema import Recipe
from shardyard.recipe.shorten import shortened
from support.tiny import tiny_recipe, write_corpus

WORLD = World(1, gpu=False)


def recipe_of(corpus: Path, epochs: float = 1.0, **sections: Any) -> Recipe:
    train = {"steps": None, "epochs": epochs, **sections.pop("train", {})}
    return tiny_recipe(corpus, train=train, schedule={"warmup": 0.1}, **sections)


def test_a_pass_over_joined_documents_is_what_the_loader_reads(tmp_path: Path) -> None:
    recipe = recipe_of(write_corpus(tmp_path), train={"global_batch": 4}, data={"streams": 1})
    plan = prepare(recipe, WORLD)
    loader = TrainLoader(
        make_components(recipe).format_inputs,
        global_batch=4,
        micro_batch=4,
        streams=1,
        seed=recipe.train.seed,
        dp_rank=0,
        dp_size=1,
    )
    try:
        steps = 0
        while True:
            batch = next(loader)
            if batch.state["0"]["sources"][0]["epoch"] > 0:
                break
            steps += 1
    finally:
        loader.close()
    assert abs(plan.steps - steps) <= 1
    assert plan.reasons["steps"].startswith("1 epochs of ")
    kept = fixed(recipe, plan)
    assert (kept.train.steps, kept.train.epochs) == (plan.steps, None)


def test_examples_are_counted_one_by_one_and_fractions_round_up(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"text": f"number {n}", "label": n % 2}) + "\n" for n in range(50)))
    config = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 1, "intermediate_size": 8}
    recipe = recipe_of(
        path,
        epochs=1.5,
        objective="text_classification",
        model={"family": "bert", "config": config},
        tokenizer="wordpiece-docs-4k",
        data={"sequence_length": 16, "train": [{"path": str(path)}]},
        train={"global_batch": 8},
    )
    plan = prepare(recipe, WORLD)
    assert plan.steps == 10
    assert plan.reasons["steps"] == "1.5 epochs of 50 rows / 8 rows a step, rounded up"
    assert shortened(recipe, 3, of=10).train.model_dump(include={"steps", "epochs"}) == {"steps": 3, "epochs": None}


def test_a_pass_over_several_sources_has_the_rows_of_all_and_is_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = []
    for name, number in (("few", 20), ("many", 60)):
        paths.append(tmp_path / f"{name}.jsonl")
        lines = (json.dumps({"text": f"number {n}", "label": n % 2}) + "\n" for n in range(number))
        paths[-1].write_text("".join(lines))
    config = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 1, "intermediate_size": 8}
    recipe = recipe_of(
        tmp_path,
        epochs=2,
        objective="text_classification",
        model={"family": "bert", "config": config},
        tokenizer="wordpiece-docs-4k",
        data={"sequence_length": 16, "temperature": 1.0, "train": [{"path": str(path)} for path in paths]},
        train={"global_batch": 8},
    )
    monkeypatch.setenv("SHARDYARD_CACHE", str(tmp_path / "cache"))
    plan = prepare(recipe, WORLD)
    assert (plan.steps, plan.sizes) == (20, (20.0, 60.0))
    kept = fixed(recipe, plan)
    assert [source.size for source in kept.data.train] == [20.0, 60.0]
    monkeypatch.setattr(count, "_of_shares", lambda *_: pytest.fail("counted again"))
    monkeypatch.setattr(sizes, "num_documents", lambda *_: pytest.fail("counted again"))
    assert prepare(recipe, WORLD).steps == 20


def test_what_cannot_be_counted_is_refused(tmp_path: Path) -> None:
    hub = recipe_of(tmp_path, data={"train": [{"path": "someone/much-text"}]})
    with pytest.raises(DataError, match=r"someone/much-text is not a file of this machine.*give train.steps or train"):
        prepare(hub, WORLD)
    corpus = write_corpus(tmp_path)
    long = tiny_recipe(corpus, train={"steps": None, "epochs": 0.001}, schedule={"warmup": 1000})
    with pytest.raises(RecipeError, match="1000 steps of warm-up take all of the 1 steps of training"):
        prepare(long, WORLD)
