"""The documents that a row was made of: their tokens, put together again by the tokenizer alone, are the row."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from shardyard.data.formats import make_rows
from shardyard.data.sources.retry import Retry
from shardyard.data.sources.sources import open_for
from shardyard.data.stream.reader import with_shards
from shardyard.data.stream.streams import Stream, StreamSettings
from shardyard.engine.components import Components, make_components
from shardyard.objectives.registry import objective_spec
from shardyard.recipe.loading.load import parse_recipe
from shardyard.recipe.schema import Recipe
from support.objectives import speech_ctc
from support.tiny import tiny_recipe, write_corpus


def streams_of(recipe: Recipe) -> tuple[Components, list[Stream]]:
    components, data, number = make_components(recipe), recipe.data, recipe.data.streams or 1
    sources = [
        with_shards(open_for(objective_spec(recipe.objective), source, training=True), number) for source in data.train
    ]
    rows = make_rows(recipe.objective, components.format_inputs)
    settings = StreamSettings(rows.stream, data.shuffle_window, number, recipe.train.seed, order=data.order)
    weights = [source.weight for source in data.train]
    return components, [Stream(index, sources, weights, settings, Retry()) for index in range(number)]


def texts_of(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("isolation", ["positions", "rows"])
def test_packed_text(tmp_path: Path, order: int, isolation: str) -> None:
    corpus = write_corpus(tmp_path, documents=50)
    components, streams = streams_of(tiny_recipe(corpus, data={"order": order, "isolation": isolation, "streams": 2}))
    texts, separator = texts_of(corpus), components.tokenizer.bos_token_id
    for stream in streams:
        for _ in range(60):
            made = stream.next_row()
            assert made is not None
            row, _ = made
            tokens: list[int] = []
            for part in stream.by_source[0].parts():
                # Two streams share the file: row n of their part is row n of the file.
                assert part.share_number % 2 == stream.index
                text = texts[part.share_number]
                assert part.window.drawn(part.document, part.document + 1) == [(part.document, text)]
                whole = [separator, *components.tokenizer(text, add_special_tokens=False)["input_ids"]]
                assert part.tokens is not None
                tokens += whole[part.first : part.first + part.tokens]
            filled = int(np.count_nonzero(row["labels"] >= 0))
            assert tokens == row["input_ids"][:filled].tolist()


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("isolate", [True, False])
def test_masked_rows(tmp_path: Path, order: int, isolate: bool) -> None:
    corpus = write_corpus(tmp_path, documents=40)
    recipe = tiny_recipe(
        corpus,
        objective="masked_lm",
        model={"family": "bert", "config": BERT},
        tokenizer="wordpiece-docs-4k",
        data={"order": order, "isolate_documents": isolate, "streams": 2},
    )
    components, (stream, _) = streams_of(recipe)
    texts = texts_of(corpus)
    for _ in range(40):
        made = stream.next_row()
        assert made is not None
        row, parts = made[0], stream.by_source[0].parts()
        ids = np.where(row["labels"] >= 0, row["labels"], row["input_ids"])[1:-1].tolist()
        separator = components.tokenizer.sep_token_id
        joined: list[int] = []
        for part in parts:
            joined += [
                separator,
                *components.tokenizer(texts[part.share_number], add_special_tokens=False)["input_ids"],
            ]
        joined.append(separator)
        assert any(joined[at : at + len(ids)] == ids for at in range(len(joined)))
        assert len(parts) == 1 or not isolate


BERT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.mark.parametrize("order", [1, 2])
def test_packed_conversations(tmp_path: Path, order: int) -> None:
    path = tmp_path / "rows.jsonl"
    turns = [[{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "a" * (n % 9)}] for n in range(40)]
    path.write_text("".join(json.dumps({"messages": one}) + "\n" for one in turns))
    source = {"path": str(path), "holdout": 0.1}
    data = {"train": [source], "order": order, "packing": True, "streams": 1, "sequence_length": 64}
    recipe = tiny_recipe(path, objective="instruction", data=data, chat={"template": TEMPLATE})
    components, (stream,) = streams_of(recipe)
    several = 0
    for _ in range(20):
        made = stream.next_row()
        assert made is not None
        row, parts, at = made[0], stream.by_source[0].parts(), 0
        for part in parts:
            assert part.tokens is not None
            text = components.tokenizer.decode(row["input_ids"][at : at + part.tokens])
            question, answer = (turn["content"] for turn in turns[part.share_number])
            assert text.startswith(f"user: {question}<|endoftext|>assistant: {answer}")
            at += part.tokens
        several += len(parts) > 1
    assert several > 10


def test_joined_recordings_of_several_streams(tmp_path: Path) -> None:
    """Streams share a format, and each knows the recordings of its own rows."""
    rows = []
    for number in range(24):
        name = f"{number}.wav"
        soundfile.write(tmp_path / name, np.zeros(1600 + 10 * number, np.float32), 16_000)
        rows.append({"audio": name, "text": f"word{number} "})
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = speech_ctc.recipe_fields(path)
    fields["data"] |= {"streams": 3, "shuffle_window": 4, "train": [{"path": str(path), "holdout": 0.1}]}
    recipe = parse_recipe(fields | {"audio": {**fields.get("audio", {}), "join": 3}})
    components, streams = streams_of(recipe)
    several = 0
    for turn in range(30):
        stream = streams[turn % 3]
        made = stream.next_row()
        assert made is not None
        text = components.tokenizer.decode([one for one in made[0]["labels"].tolist() if one >= 0])
        parts = stream.by_source[0].parts()
        assert {int(word) for word in re.findall(r"\d+", text)} == {part.share_number for part in parts}
        several += len(parts) > 1
    assert several > 3
