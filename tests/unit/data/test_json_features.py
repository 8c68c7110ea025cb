"""JSON whose fields have more than one shape, and layouts that are recognised by their columns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest

from shardyard.data.sources.retry import Retry
from shardyard.data.sources.sources import open_for, open_source
from shardyard.data.stream.reader import START, ShareReader, share_of
from shardyard.errors import DataError, UnusableRowError
from shardyard.objectives.registry import objective_spec
from shardyard.recipe.schema import Source

QUESTION = {"role": "user", "content": "question\nplease"}
ANSWER = {"role": "assistant", "content": "answer"}
PLAIN = [QUESTION, ANSWER]
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"properties": {"city": {"type": "string"}}}}}


def write(folder: Path, rows: Sequence[dict[str, Any]], name: str = "rows.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def reader_of(path: str, objective: str, on_error: Any = "skip", **options: Any) -> ShareReader:
    opened = open_for(objective_spec(objective), Source(path=path, **options), training=True)
    reader = ShareReader(share_of(opened, 0, 1), Retry(), on_error)
    reader.seek(START)
    return reader


def read(path: str, objective: str = "instruction", **options: Any) -> list[Any]:
    reader = reader_of(path, objective, **options)
    try:
        return reader.read(1000)
    finally:
        reader.close()


def test_content_of_two_shapes_is_decoded(tmp_path: Path) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": 'say "hi" é'}]}, ANSWER]
    rows = read(write(tmp_path, [{"messages": PLAIN}, {"messages": parts}]))
    assert rows == [{"messages": PLAIN}, {"messages": parts}]


def test_keys_that_a_message_does_not_have_are_absent(tmp_path: Path) -> None:
    calling = [QUESTION, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    rows = [{"messages": PLAIN}, {"messages": calling, "tools": [TOOL]}]
    assert read(write(tmp_path, rows)) == rows


def test_keys_that_arrow_fills_with_null_are_absent(tmp_path: Path) -> None:
    """Equal shapes become structs, in which each message has every key."""
    named = [{**QUESTION, "name": "Ann"}, ANSWER]
    other = {"type": "function", "function": {"name": "time", "parameters": {"properties": {"zone": {"type": "x"}}}}}
    rows = [{"messages": PLAIN, "tools": [TOOL]}, {"messages": named, "tools": [other]}]
    path = tmp_path / "rows.parquet"
    datasets.Dataset.from_list(rows).to_parquet(path)
    assert pq.read_table(path).to_pylist()[0]["messages"][0]["name"] is None
    assert read(str(path)) == rows


def test_a_text_column_with_other_values_skips_those(tmp_path: Path) -> None:
    path = write(tmp_path, [{"text": 'a "quoted" text'}, {"text": {"no": "text"}}, {"text": "b"}])
    opened = open_source(Source(path=path), training=True)
    reader = ShareReader(share_of(opened, 0, 1), Retry())
    reader.seek(START)
    assert reader.read(10) == ['a "quoted" text', "b"]
    assert reader.left_out.named == ["rows.jsonl, row 2: no text where text is read: {'no': 'text'}"]


def conversation(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


LAYOUTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ShareGPT": (
        {"conversations": [{"from": "human", "value": "say 1"}, {"from": "gpt", "value": "1"}]},
        conversation(("user", "say 1"), ("assistant", "1")),
    ),
    "ShareGPT with a system column": (
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "Be brief."},
        conversation(("system", "Be brief."), ("user", "a"), ("assistant", "b")),
    ),
    "Alpaca": (
        {"instruction": "Repeat.", "input": "0", "output": "0"},
        conversation(("user", "Repeat.\n0"), ("assistant", "0")),
    ),
    "Alpaca without input": (
        {"instruction": "Repeat.", "input": "", "output": "0"},
        conversation(("user", "Repeat."), ("assistant", "0")),
    ),
    "Alpaca with history": (
        {"instruction": "c", "output": "d", "system": "s", "history": [["a", "b"]]},
        conversation(("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")),
    ),
    "prompt and completion": (
        {"prompt": "a", "completion": "b"},
        conversation(("user", "a"), ("assistant", "b")),
    ),
    "question and answer": ({"question": "a", "answer": "b"}, conversation(("user", "a"), ("assistant", "b"))),
    "messages with a system column": (
        {"messages": PLAIN, "system_prompt": "s"},
        {"messages": [{"role": "system", "content": "s"}, *PLAIN]},
    ),
    "messages with a system of their own": (
        {"messages": [{"role": "system", "content": "t"}, *PLAIN], "system": "s"},
        {"messages": [{"role": "system", "content": "t"}, *PLAIN]},
    ),
    "dialogue": ({"dialogue": PLAIN}, {"messages": PLAIN}),
    "turns of speakers": (
        {"turns": [{"speaker": "Human", "text": "a"}, {"speaker": "AI", "text": "b"}]},
        conversation(("user", "a"), ("assistant", "b")),
    ),
    "texts in turn": (
        {"dialog": ["a", "b", "c", "d"]},
        conversation(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")),
    ),
    "turns that hold question and answer": (
        {"conversation": [{"human": "a", "assistant": "b"}, {"human": "c", "assistant": "d"}]},
        conversation(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")),
    ),
    "roles in capitals": (
        {"messages": [{"role": "USER", "content": "a"}, {"role": "Assistant", "content": "b"}]},
        conversation(("user", "a"), ("assistant", "b")),
    ),
    "results of functions": (
        {"messages": [QUESTION, ANSWER, {"role": "function", "name": "f", "content": "3"}, ANSWER]},
        {"messages": [QUESTION, ANSWER, {"role": "tool", "name": "f", "content": "3"}, ANSWER]},
    ),
    "prompt and completion as messages": (
        {"prompt": [QUESTION, ANSWER, QUESTION], "completion": [ANSWER]},
        {"messages": [QUESTION, {**ANSWER, "weight": 0}, QUESTION, ANSWER]},
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_of_conversations(tmp_path: Path, name: str) -> None:
    row, example = LAYOUTS[name]
    assert read(write(tmp_path, [row])) == [example]


def test_calls_of_functions_in_sharegpt(tmp_path: Path) -> None:
    call = {"name": "weather", "arguments": {"city": "Oslo"}}
    turns = [
        {"from": "human", "value": "weather?"},
        {"from": "function_call", "value": json.dumps(call)},
        {"from": "observation", "value": "3"},
        {"from": "gpt", "value": "3 degrees"},
    ]
    (found,) = read(write(tmp_path, [{"conversations": turns, "tools": json.dumps([TOOL])}]))
    assert [message["role"] for message in found["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert found["messages"][1]["tool_calls"] == [{"type": "function", "function": call}]
    assert found["tools"] == [TOOL]


TEXTS = {"prompt": "Who?", "chosen": "Me.", "rejected": "You."}
PAIR = {
    "prompt": [{"role": "user", "content": "Who?"}],
    "chosen": [{"role": "assistant", "content": "Me."}],
    "rejected": [{"role": "assistant", "content": "You."}],
}


@pytest.mark.parametrize(
    ("row", "pair"),
    [
        (TEXTS, TEXTS),
        (PAIR, PAIR),
        # UltraFeedback.
        ({"prompt": "Who?", **{name: PAIR["prompt"] + PAIR[name] for name in ("chosen", "rejected")}}, PAIR),
        # HH.
        ({name: f"\n\nHuman: Who?\n\nAssistant: {TEXTS[name]}" for name in ("chosen", "rejected")}, PAIR),
        # HH, stripped.
        ({name: f"Human: Who?\n\nAssistant: {TEXTS[name]}" for name in ("chosen", "rejected")}, PAIR),
        # A conversation and one message each, as LLaMA-Factory has them.
        (
            {
                "conversations": [{"from": "human", "value": "Who?"}],
                **{name: {"from": "gpt", "value": TEXTS[name]} for name in ("chosen", "rejected")},
            },
            PAIR,
        ),
        # Texts that begin like a transcript.
        (
            {**TEXTS, "chosen": "Human: Me.", "rejected": "Assistant: You."},
            {**TEXTS, "chosen": "Human: Me.", "rejected": "Assistant: You."},
        ),
        # An implicit prompt.
        ({name: PAIR["prompt"] + PAIR[name] for name in ("chosen", "rejected")}, PAIR),
    ],
)
def test_layouts_of_pairs(tmp_path: Path, row: dict[str, Any], pair: dict[str, Any]) -> None:
    assert read(write(tmp_path, [row]), "preference") == [pair]


def test_a_mapping_chooses_the_layout(tmp_path: Path) -> None:
    path = write(tmp_path, [{"messages": PLAIN, "q": "a", "a": "b"}])
    assert read(path) == [{"messages": PLAIN}]
    columns = {"prompt": "q", "completion": "a"}
    assert read(path, columns=columns) == [conversation(("user", "a"), ("assistant", "b"))]


def test_unknown_columns_are_named_with_a_mapping(tmp_path: Path) -> None:
    path = write(tmp_path, [{"q": "a", "a": "b"}])
    told = r"has the columns q, a, .*conversations \(ShareGPT\).*prompt: q, completion: a"
    with pytest.raises(DataError, match=told):
        read(path)


def test_rows_that_no_layout_can_read_are_counted_and_named(tmp_path: Path) -> None:
    rows = [{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]} for _ in range(3)]
    rows[1] = {"conversations": [{"who": "human", "value": "a"}]}
    path = write(tmp_path, rows)
    reader = reader_of(path, "instruction")
    assert len(reader.read(10)) == 2
    assert reader.left_out.num_unusable == 1
    assert reader.left_out.named[0].startswith("rows.jsonl, row 2: a message of conversations has no role")
    with pytest.raises(UnusableRowError, match=r"rows\.jsonl, row 2.*set data\.on_error to skip"):
        reader_of(path, "instruction", "stop").read(10)


def test_the_row_of_a_file_among_several(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path, [{"messages": PLAIN}] * 4, f"{name}.jsonl")
    reader = reader_of(str(tmp_path / "*.jsonl"), "instruction")
    assert [reader.place(number) for number in (0, 3, 5)] == ["a.jsonl, row 1", "a.jsonl, row 4", "b.jsonl, row 2"]
    path = tmp_path / "c.parquet"
    datasets.Dataset.from_list([{"messages": PLAIN}] * 9).to_parquet(path, batch_size=3)
    share = reader_of(str(path), "instruction").share
    parts = share_of(share.source, 1, 3)
    resharded = ShareReader(parts, Retry())
    resharded.seek(START)
    assert resharded.place(1) == "c.parquet, row 2"
