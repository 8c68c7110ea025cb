"""Conversations of several rows in a stream: counted, resumed within a conversation, and left out row by row."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shardyard.data.formats import FormatInputs
from shardyard.data.mixture.batches import StageBatches
from shardyard.data.stream.count import count_rows
from shardyard.data.stream.loader import TrainLoader
from shardyard.recipe.schema import Chat, Source, Stage
from support.chat.cases import answer, call, chat_tokenizer, result, user
from support.data_cases import data

TALK = [
    {"messages": [user(f"one {n}?"), answer("A.", reasoning_content="why"), user("two?"), answer(f"B {n}.")]}
    for n in range(5)
]
# Optional keys, which `datasets` fills in as null in all other rows.
WITH_TOOLS = {
    "messages": [user("Weather?"), answer(None, tool_calls=[call("Oslo")]), result("3"), answer("Cold.", weight=1)],
    "tools": [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}],
    "chat_template_kwargs": {"enable_thinking": False},
}


def inputs(folder: Path, rows: list[Any], length: int = 400, *, packing: bool = False, **chat: Any) -> FormatInputs:
    path = folder / "talk.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = data([Source(path=str(path))], sequence_length=length, shuffle_window=3, packing=packing)
    return FormatInputs(recipe, chat_tokenizer("qwen3"), chat=Chat(**chat))


def loader(given: FormatInputs) -> TrainLoader:
    return TrainLoader(given, objective="instruction", global_batch=1, streams=1, seed=3, dp_rank=0, dp_size=1)


def rows(given: FormatInputs, count: int, state: Any = None) -> tuple[list[list[int]], list[Any]]:
    """Tokens of rows, and the state after each."""
    opened = loader(given)
    try:
        if state is not None:
            opened.load_state(json.loads(json.dumps(state)))
        made = [next(opened) for _ in range(count)]
    finally:
        opened.close()
    return [batch.micro_batches[0]["input_ids"][0].tolist() for batch in made], [batch.state for batch in made]


def test_a_stream_continues_within_a_conversation(tmp_path: Path) -> None:
    given = inputs(tmp_path, TALK)
    assert count_rows(given, "instruction", seed=3) == 10
    whole, states = rows(given, 14)
    for done in (1, 2, 5, 6, 11):
        assert rows(given, 14 - done, states[done - 1])[0] == whole[done:]


def test_a_stage_with_longer_rows_continues_within_a_conversation(tmp_path: Path) -> None:
    given = inputs(tmp_path, TALK)
    planned = given.data.model_copy(update={"stages": [Stage(at=3, sequence_length=500)]})
    stages = [StageBatches(0, 1, 1, 400, (1.0,)), StageBatches(3, 1, 1, 500, (1.0,))]
    opened = TrainLoader(
        replace(given, data=planned),
        objective="instruction",
        global_batch=1,
        streams=1,
        seed=3,
        dp_rank=0,
        dp_size=1,
        stages=stages,
    )
    try:
        made = [next(opened).micro_batches[0]["input_ids"][0].tolist() for _ in range(14)]
    finally:
        opened.close()
    # No row is longer than 400 tokens, so all are as without stages.
    assert made == rows(given, 14)[0]


def test_all_rows_of_a_conversation_are_packed(tmp_path: Path) -> None:
    alone, _ = rows(inputs(tmp_path, TALK), 10)
    given = inputs(tmp_path, TALK, length=300, packing=True)
    count = count_rows(given, "instruction", seed=3)
    packed, states = rows(given, count)
    assert count < 10
    assert sum(map(len, packed)) == sum(map(len, alone))
    assert rows(given, count - 1, states[0])[0] == packed[1:]


def test_only_rows_without_room_for_their_answer_are_left_out(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer("qwen3")
    first = tokenizer.apply_chat_template(TALK[0]["messages"][:2], tokenize=False)
    given = inputs(tmp_path, TALK, length=len(tokenizer(first, add_special_tokens=False)["input_ids"]))
    assert count_rows(given, "instruction", seed=3) == 5
    assert count_rows(inputs(tmp_path, TALK, loss_on="last"), "instruction", seed=3) == 5


@pytest.mark.parametrize("place", [0, 3])
def test_keys_that_only_one_row_has_do_not_change_the_others(tmp_path: Path, place: int) -> None:
    alone, _ = rows(inputs(tmp_path, [*TALK]), 10)
    (tmp_path / "more").mkdir()
    together, _ = rows(inputs(tmp_path / "more", [*TALK[:place], WITH_TOOLS, *TALK[place:]]), 12)
    tokenizer = chat_tokenizer("qwen3")
    assert sorted(row for row in together if row in alone) == sorted(alone)
    called, answered = sorted((tokenizer.decode(row) for row in together if row not in alone), key=len)
    shown = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    assert called.endswith(f"<|im_start|>assistant\n<think>\n\n</think>\n\n{shown}")
    assert answered.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\nCold.<|im_end|>")
    assert "<tools>" in answered
    assert shown in answered
