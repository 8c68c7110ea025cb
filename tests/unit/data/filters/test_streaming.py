"""data.filters while streaming: counted by reason, with the order of what is left and its resumption unchanged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardyard.data.filters.outcome import Removed
from shardyard.data.formats import FormatInputs
from shardyard.data.sources.sources import steps_of
from shardyard.data.stream.first_rows import check_first_rows
from shardyard.data.stream.held_out import held_out_rows
from shardyard.data.stream.loader import filtered_share
from shardyard.errors import DataError, RecipeError
from shardyard.recipe.loading.load import load_recipe
from shardyard.recipe.schema import Data, Source
from shardyard.recipe.sections.filters import Step
from support.data_cases import bytes_tokenizer, data, documents, loader, write_jsonl

DROP = [Step.model_validate({"regex": {"pattern": r"^<d\d*[02468]:"}})]
UPPER = [Step.model_validate({"regex": {"pattern": "<d", "action": "replace", "replacement": "<E"}})]
REASON = r"regex: matches ^<d\d*[02468]:"


def rows(recipe: Data, number: int, **options: Any) -> list[Any]:
    with loader(recipe, **options) as opened:
        return [next(opened)["input_ids"].numpy() for _ in range(number)]


@pytest.mark.parametrize("order", [1, 2])
def test_rows_are_those_of_files_without_what_is_removed(tmp_path: Path, order: int) -> None:
    texts = documents(40)
    # One shard a stream, so that the numbers of rows in a file do not choose their stream.
    shards = [texts[n : n + 10] for n in range(0, 40, 10)]
    whole = write_jsonl(tmp_path / "whole", shards)
    odd = write_jsonl(
        tmp_path / "odd", [[text for text in shard if int(text[2:].split(":")[0]) % 2] for shard in shards]
    )
    odd_rows = rows(data([Source(path=odd)], shuffle_window=1, order=order), 6)
    found = rows(data([Source(path=whole)], shuffle_window=1, order=order, filters=DROP), 6)
    assert all((a == b).all() for a, b in zip(odd_rows, found, strict=True))


@pytest.mark.parametrize("order", [1, 2])
def test_resumed_rows_are_those_of_an_uninterrupted_run(tmp_path: Path, order: int) -> None:
    path = write_jsonl(tmp_path, [documents(150)])
    recipe = data([Source(path=path)], filters=[*DROP, *UPPER], order=order)
    with loader(recipe) as opened:
        batches = [next(opened) for _ in range(12)]
    for done in (1, 5, 10):
        states = batches[done - 1].state
        # Two ranks continue what one began.
        parts = []
        for rank in range(2):
            with loader(recipe, dp_rank=rank, dp_size=2) as opened:
                opened.load_state(states)
                parts.append(next(opened)["input_ids"].numpy())
        expected = batches[done]["input_ids"].numpy()
        assert (np.stack(parts, axis=1).reshape(expected.shape) == expected).all()


def test_removed_documents_are_counted_by_reason(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, [documents(20)])
    short = Step.model_validate({"length": {"min": 7}})
    with loader(data([Source(path=path)], filters=[short, *DROP]), streams=1, global_batch=1) as opened:
        for _ in range(12):
            next(opened)
        stats = opened.stats()
        (source,) = stats["sources"]
        left_out = source["left_out"]
    assert left_out["unusable"] == 0
    passes = source["epochs"] + 1
    assert set(left_out["filtered"]) == {"length: fewer than 7 characters", REASON}
    assert 0 < left_out["filtered"][REASON] <= 10 * passes
    assert 0.4 < filtered_share(stats) < 0.9


def test_a_source_has_its_own_filters_and_none_if_it_says_so(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, [documents(8)])
    recipe = data([Source(path=path), Source(path=path, filters=[]), Source(path=path, filters=UPPER)], filters=DROP)
    assert [source.filters for source in recipe.train] == [DROP, [], UPPER]
    # What is written of it is read back to the same.
    assert Data.model_validate(recipe.model_dump()) == recipe


def test_held_out_rows_are_filtered_too_and_say_it(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, [documents(20)])
    recipe = data([Source(path=path)], validation=[Source(path=path, split="train")], filters=DROP)
    held = held_out_rows(FormatInputs(recipe, bytes_tokenizer()), 100, 0)
    assert held.filtered == {REASON: 10}
    assert f"10 rows were removed by filters: {REASON} (10)" in held.describe()


def test_a_source_of_which_everything_is_removed_is_an_error(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, [documents(20)])
    recipe = data(
        [Source(path=path)], validation=[Source(path=path)], filters=[Step.model_validate({"length": {"min": 99}})]
    )
    with pytest.raises(DataError, match=r"20 rows were removed by filters: length: fewer than 99 characters \(20\)"):
        check_first_rows(FormatInputs(recipe, bytes_tokenizer()), "causal_lm")


RECIPE = """
extends: gpt/quickstart
data:
  train:
    - path: {path}
      filters: {steps}
  validation: [{{path: {path}, split: train, holdout: 0.1}}]
"""


@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        ("[{gopher_qualty: }]", "unknown key 'gopher_qualty'; did you mean 'gopher_quality'?"),
        (
            "[{near_duplicates: }]",
            "compares all documents with each other, which a stream cannot: list it under `steps`",
        ),
        ("[{exact_duplicates: }]", "compares all documents with each other"),
        ("[{c4: , length: {min: 1}}]", "has length and c4; make each an entry of its own"),
        ("[{}]", "names no step"),
        ("[{length: {}}]", "has neither min nor max; give one"),
        ("[{length: {min: 3, max: 2}}]", "is 3, more than max, 2"),
        ("[{length: {unit: tokens, min: 3}}]", "is missing: tokens are those of a tokenizer"),
        ("[{length: {min: 3, tokenizer: bytes}}]", "is for unit tokens, not characters; remove it"),
        ("[{regex: {pattern: '('}}]", "is no regular expression"),
        ("[{regex: {pattern: a, replacement: b}}]", "has no effect on drop"),
        ("[{gopher_quality: {min_words: 5, max_words: 2}}]", "is 5, more than max_words, 2"),
        ("[{decontaminate: {against: [{}]}}]", "needs either `source`"),
        ("[{decontaminate: {against: [{path: x}], min_ngram: 14}}]", "is more than ngram"),
    ],
)
def test_a_wrong_step_is_refused_with_its_line(tmp_path: Path, steps: str, problem: str) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x"}) + "\n")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(RECIPE.format(path=tmp_path / "a.jsonl", steps=steps))
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(recipe))
    found = [one for one in caught.value.problems if problem in one.message]
    assert found, caught.value
    assert found[0].where.endswith(("r.yaml:6", "r.yaml:5"))


def test_maps_are_for_rows_of_text(tmp_path: Path) -> None:
    rows_ = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_))
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "extends: gpt/quickstart\nobjective: preference\ndata:\n  filters: [{lowercase: }]\n"
        f"  train: [{{path: {tmp_path}/a.jsonl}}]\n"
    )
    with pytest.raises(
        RecipeError, match="changes the text of documents, and the rows of preference are not single texts"
    ):
        load_recipe(str(recipe))


def test_conversations_are_judged_by_all_their_texts() -> None:
    steps = steps_of([Step.model_validate({"regex": {"pattern": "secret|user"}})])
    talk = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": [{"text": "the secret"}]}]}
    assert steps.of_example(talk) == Removed("regex: matches secret|user")
    harmless = {
        "messages": [{"role": "user", "content": "hi"}],
        "label": 3,
        "image": {"bytes": b"secret", "path": None},
    }
    assert steps.of_example(harmless) == harmless
