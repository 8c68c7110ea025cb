"""Rows that nothing can be learned from: skipped, repaired or refused, counted, and without effect on the others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from shardyard.data.formats import FormatInputs
from shardyard.data.stream.count import count_rows
from shardyard.data.stream.first_rows import check_first_rows
from shardyard.data.stream.held_out import held_out_rows
from shardyard.data.stream.loader import TrainLoader
from shardyard.data.tokenizers.tokenizer import load_tokenizer
from shardyard.data.turns import repairs
from shardyard.errors import DataError, UnusableRowError
from shardyard.recipe.schema import Source
from support.data_cases import data

# A template that refuses what many refuse: system messages, and roles that do not alternate.
STRICT = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '[I]' + m.content + '[/I]' if m.role == 'user' else m.content + eos_token }}{% endfor %}"
)


def turns(*said: str) -> list[dict[str, str]]:
    """`u:hello` is a turn of the user, `a:` one of the assistant, `s:` one of the system."""
    roles = {"u": "user", "a": "assistant", "s": "system"}
    return [{"role": roles[text[0]], "content": text[2:]} for text in said]


GOOD = [turns(f"u:question {n}", f"a:answer {n}") for n in range(6)]
BAD = {
    "assistant first": turns("a:welcome", "u:hi", "a:yes"),
    "roles that do not alternate": turns("u:a", "u:b", "a:c"),
    "an empty turn": turns("u:a", "a:", "u:b", "a:c"),
    "a system message": turns("s:be kind", "u:a", "a:c"),
}


def strict() -> PreTrainedTokenizerFast:
    tokenizer = load_tokenizer("bytes")
    tokenizer.chat_template = STRICT
    return tokenizer


def write(folder: Path, conversations: Sequence[Any], key: str = "messages") -> str:
    path = folder / "talk.jsonl"
    path.write_text("".join(json.dumps({key: found} if key else found) + "\n" for found in conversations))
    return str(path)


def inputs(path: str, length: int = 128, **options: Any) -> FormatInputs:
    recipe = data([Source(path=path)], validation=[Source(path=path)], sequence_length=length, **options)
    return FormatInputs(recipe, strict())


def loader(given: FormatInputs, objective: str = "instruction") -> TrainLoader:
    return TrainLoader(given, objective=objective, global_batch=2, streams=1, seed=7, dp_rank=0, dp_size=1)


def texts(given: FormatInputs, batches: int, state: Any = None) -> tuple[list[str], Any, Any]:
    """The rows as texts, the state after them, and what was left out."""
    opened = loader(given)
    try:
        if state is not None:
            opened.load_state(json.loads(json.dumps(state)))
        made = [next(opened) for _ in range(batches)]
        found = [
            given.text_tokenizer.decode(ids[mask.bool()])
            for batch in made
            for part in batch.micro_batches
            for ids, mask in zip(part["input_ids"], part["attention_mask"], strict=True)
        ]
        return found, made[-1].state, opened.stats()["sources"][0]["left_out"]
    finally:
        opened.close()


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_skipped_and_named(tmp_path: Path, name: str) -> None:
    found, _, left_out = texts(inputs(write(tmp_path, [*GOOD, BAD[name]])), 3)
    assert sorted(found) == [f"[I]question {n}[/I]answer {n}" for n in range(6)]
    # Reading ahead may have begun the next epoch.
    assert left_out["unusable"] >= 1
    assert left_out["named"][0].startswith("talk.jsonl, row 7: ")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("assistant first", "[I]hi[/I]yes"),
        ("roles that do not alternate", "[I]a\n\nb[/I]c"),
        ("an empty turn", "[I]a\n\nb[/I]c"),
        ("a system message", "[I]be kind\n\na[/I]c"),
    ],
)
def test_a_bad_row_is_repaired(tmp_path: Path, name: str, text: str) -> None:
    given = inputs(write(tmp_path, [*GOOD, GOOD[0], BAD[name]]), on_error="repair")
    found, _, left_out = texts(given, 4)
    assert text in found
    assert (left_out["unusable"], left_out["named"][0]) == (0, "talk.jsonl, row 8: repaired")


def test_stop_names_file_and_row(tmp_path: Path) -> None:
    opened = loader(inputs(write(tmp_path, [*GOOD, BAD["assistant first"]]), on_error="stop"))
    with pytest.raises(UnusableRowError, match=r"talk.jsonl, row 7: .*roles must alternate.*data.on_error"):
        list(opened)
    opened.close()


def test_calls_of_tools_are_not_joined() -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}
    talk = [*turns("u:a"), call, *turns("a:b", "a:c")]
    (found,) = repairs(talk)
    assert found == [*turns("u:a"), call, *turns("a:b\n\nc")]


def test_instructions_of_a_developer_are_repaired_as_those_of_the_system() -> None:
    talk = [{"role": "developer", "content": "x"}, *turns("u:a", "u:b", "a:c")]
    assert list(repairs(talk)) == [turns("s:x", "u:a\n\nb", "a:c"), turns("u:x\n\na\n\nb", "a:c")]


def test_the_order_of_the_others_and_resumed_rows_are_the_same(tmp_path: Path) -> None:
    mixed = [found for pair in zip(GOOD, BAD.values(), strict=False) for found in pair] + GOOD[4:]
    given = inputs(write(tmp_path, mixed))
    whole, _, _ = texts(given, 9)
    for batches in (1, 2, 4):
        first, state, _ = texts(given, batches)
        rest, _, _ = texts(given, 9 - batches, state)
        assert first + rest == whole
    assert sorted(whole[:6]) == [f"[I]question {n}[/I]answer {n}" for n in range(6)]


LONG = turns("u:" + "lorem ipsum " * 20, "a:ok")


def streamed(given: FormatInputs, batches: int, state: Any = None) -> tuple[list[str], Any, Any]:
    """As `texts`, of four streams: row n of a batch is of stream n."""
    opened = TrainLoader(
        given, objective="instruction", global_batch=4, micro_batch=1, streams=4, seed=7, dp_rank=0, dp_size=1
    )
    try:
        if state is not None:
            opened.load_state(json.loads(json.dumps(state)))
        made = [next(opened) for _ in range(batches)]
        rows = [part["input_ids"][0] for batch in made for part in batch.micro_batches]
        return [given.text_tokenizer.decode(ids) for ids in rows], made[-1].state, opened.stats()["sources"][0]
    finally:
        opened.close()


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("bad", [BAD["assistant first"], LONG, None], ids=["refused", "without target", "no messages"])
def test_a_stream_whose_rows_are_all_bad_reads_the_whole_source(tmp_path: Path, bad: Any, packing: bool) -> None:
    # Every fourth example belongs to stream 1.
    talks = [bad if n % 4 == 1 else turns(f"u:question {n}", f"a:answer {n}") for n in range(16)]
    good = [f"[I]question {n}[/I]answer {n}" for n in range(16) if n % 4 != 1]
    given = inputs(write(tmp_path, talks), 40 if packing else 96, packing=packing)
    whole, _, counts = streamed(given, 14)
    first, state, _ = streamed(given, 5)
    assert first + streamed(given, 9, state)[0] == whole
    assert {talk for talk in good if any(talk in row for row in whole[1::4])} == set(good)
    assert counts["left_out"]["empty_streams"] == 1


def test_a_source_of_bad_rows_alone_is_refused_by_every_stream(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has nothing to learn from: .* rows were left out"):
        streamed(inputs(write(tmp_path, [LONG] * 9), 96), 1)


def test_rows_without_a_target_are_dropped_and_counted(tmp_path: Path) -> None:
    given = inputs(write(tmp_path, [LONG, *GOOD]), 96)
    found, _, left_out = texts(given, 3)
    assert sorted(found) == [f"[I]question {n}[/I]answer {n}" for n in range(6)]
    assert left_out["without_target"] >= 1
    assert left_out["named"][0] == "talk.jsonl, row 1: no target within data.sequence_length"
    # The steps of an epoch are counted without them.
    assert count_rows(given, "instruction", 7) == 6


def test_conversations_without_an_answer_to_train_are_counted(tmp_path: Path) -> None:
    talk = [*turns("u:a"), {"role": "assistant", "content": "b", "weight": 0}]
    _, _, left_out = texts(inputs(write(tmp_path, [talk, *GOOD])), 3)
    assert left_out["without_target"] >= 1
    assert left_out["named"][0] == "talk.jsonl, row 1: no answer that is trained"


def test_nothing_to_learn_is_refused_early_and_late(tmp_path: Path) -> None:
    given = inputs(write(tmp_path, [LONG] * 60), 96)
    told = r"nothing to learn from for training: 60 rows were left out: talk.jsonl, row 1"
    with pytest.raises(DataError, match=told):
        check_first_rows(given, "instruction")
    with pytest.raises(DataError, match="nothing to learn from: 60 rows were left out"):
        next(loader(given))
    with pytest.raises(DataError, match=r"the evaluation on .* has no target: 60 rows were left out"):
        held_out_rows(given, 8, 0, objective="instruction")


def test_a_pair_needs_room_for_both_answers(tmp_path: Path) -> None:
    short = {"prompt": "Who?", "chosen": "me", "rejected": "you"}
    pairs = [{**short, "prompt": "lorem ipsum " * 20}, short]
    given = inputs(write(tmp_path, pairs, ""), 96)
    held = held_out_rows(given, 8, 0, objective="preference")
    assert held.num_rows == 1
    assert held.describe().endswith("1 row was left out: talk.jsonl, row 1: no target within data.sequence_length")


def test_an_evaluation_leaves_the_same_rows_out(tmp_path: Path) -> None:
    held = held_out_rows(inputs(write(tmp_path, [*GOOD, *BAD.values()])), 99, 0, objective="instruction")
    assert (held.num_rows, held.num_left_out) == (6, 4)
