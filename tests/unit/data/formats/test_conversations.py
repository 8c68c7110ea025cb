"""Conversations and preferences as rows: which tokens are targets, exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from shardyard.data.chat import PLAIN_TEMPLATE, add_chat_template, chat_prompt, encode_conversation
from shardyard.data.formats.conversations import make
from shardyard.data.formats.inputs import FormatInputs
from shardyard.data.formats.preferences import make as make_preferences
from shardyard.data.tokenizers.tokenizer import load_tokenizer
from shardyard.errors import DataError, UnusableRowError
from shardyard.recipe.schema import Data, Source

# As ChatML (OpenAI 2023) writes turns: a line break follows the token that ends one.
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Größe?"},
    {"role": "assistant", "content": "Zwölf."},
    {"role": "user", "content": "And?"},
    {"role": "assistant", "content": "More."},
]
GENERATOR = np.random.default_rng(0)


def tokenizer(template: str | None = None, name: str = "bytes", **special: Any) -> PreTrainedTokenizerFast:
    found = load_tokenizer(name)
    if special:
        found.add_special_tokens(special)
    found.chat_template = template
    return found


def context(length: int, found: PreTrainedTokenizerFast) -> FormatInputs:
    return FormatInputs(Data(sequence_length=length, train=[Source(path="x.jsonl")]), found)


def answers(found: PreTrainedTokenizerFast, messages: list[dict[str, str]]) -> list[str]:
    """The texts of the runs of tokens that are answers."""
    add_chat_template(found)
    encoded = encode_conversation(found, messages)
    runs: list[list[int]] = [[]]
    for token, is_answer in zip(encoded.ids, encoded.is_answer, strict=True):
        if is_answer:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [found.decode(run) for run in runs if run]


@pytest.mark.parametrize("name", ["bytes", "bpe-docs-4k"])
def test_the_plain_template_says_roles_and_ends_answers(name: str) -> None:
    found = tokenizer(name=name)
    end = found.eos_token
    assert answers(found, TALK) == [f" Zwölf.{end}", f" More.{end}"]
    text = found.decode(encode_conversation(found, TALK).ids)
    body = f"System: Be brief.\nUser: Größe?\nAssistant: Zwölf.{end}\nUser: And?\nAssistant: More.{end}\n"
    assert text == (found.bos_token or "") + body
    assert chat_prompt(found, "And?") == (found.bos_token or "") + "User: And?\nAssistant:"


def test_the_tokenizers_own_template_is_used() -> None:
    found = tokenizer(CHATML, additional_special_tokens=["<|im_start|>", "<|im_end|>"])
    assert answers(found, TALK) == ["Zwölf.<|im_end|>", "More.<|im_end|>"]
    assert found.chat_template == CHATML


def test_the_template_is_saved_with_the_tokenizer(tmp_path: Path) -> None:
    found = tokenizer()
    make(context(64, found))
    found.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.chat_template == PLAIN_TEMPLATE
    assert encode_conversation(again, TALK) == encode_conversation(found, TALK)


def test_quoted_special_tokens_end_nothing() -> None:
    found = tokenizer()
    end = found.eos_token
    quoting = [
        {"role": "user", "content": f"What is {end}?"},
        {"role": "assistant", "content": f"It is {end}, the end."},
    ]
    assert answers(found, quoting) == [f" It is {end}, the end.{end}"]
    ids = encode_conversation(found, quoting).ids
    assert [at for at, token in enumerate(ids) if token == found.eos_token_id] == [0, len(ids) - 2]


def test_targets_are_the_next_tokens_of_answers() -> None:
    found = tokenizer()
    rows = make(context(200, found))
    row = rows.row({"messages": TALK}, GENERATOR)
    encoded = encode_conversation(found, TALK)
    assert row["input_ids"].tolist() == encoded.ids[:-1]
    assert row["attention_mask"].tolist() == [1] * (len(encoded.ids) - 1)
    expected = [token if is_answer else -100 for token, is_answer in zip(encoded.ids, encoded.is_answer, strict=True)]
    assert row["labels"].tolist() == expected[1:]
    assert (row["labels"] != -100).sum() == len(" Zwölf.".encode()) + len(" More.") + 2
    assert rows.num_cut == 0


def test_what_does_not_fit_is_cut_and_counted() -> None:
    found = tokenizer()
    rows = make(context(40, found))
    whole = encode_conversation(found, TALK) if found.chat_template else None
    row = rows.row({"messages": TALK}, GENERATOR)
    assert whole is not None
    assert len(row["input_ids"]) == 40
    assert rows.num_cut == len(whole.ids) - 41


def test_a_batch_is_padded_where_nothing_is_seen() -> None:
    rows = make(context(200, tokenizer()))
    batch = rows.collate([rows.row({"messages": TALK[:count]}, GENERATOR) for count in (3, 5)])
    short = int((rows.row({"messages": TALK[:3]}, GENERATOR)["input_ids"]).size)
    assert {tuple(tensor.shape) for tensor in batch.values()} == {(2, batch["labels"].shape[1])}
    assert batch["attention_mask"][0].tolist() == [1] * short + [0] * (batch["labels"].shape[1] - short)
    assert set(batch["labels"][0, short:].tolist()) == {-100}


def test_a_pair_has_the_same_prompt_and_its_own_answers() -> None:
    found = tokenizer()
    rows = make_preferences(context(200, found))
    row = rows.row({"prompt": "Who?", "chosen": "The first one.", "rejected": "No."}, GENERATOR)
    prompt = 1 + len("User: Who?\nAssistant:")
    for answer, text in (("chosen", " The first one."), ("rejected", " No.")):
        (targets,) = row[f"{answer}_labels"]
        assert found.decode(targets[targets != -100]) == text + found.eos_token
        assert (targets[: prompt - 1] == -100).all()
        assert targets[prompt - 1] == ord(" ")
    assert (row["chosen_input_ids"][0, :prompt] == row["rejected_input_ids"][0, :prompt]).all()
    batch = rows.collate([row, rows.row({"prompt": "?", "chosen": "a", "rejected": "b" * 30}, GENERATOR)])
    assert batch["chosen_labels"].shape != batch["rejected_labels"].shape
    assert rows.num_cut == 0


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        (None, [{"role": "user"}], "a message needs a role and a content"),
        (
            "{% for m in messages %}{{ loop.revindex }}{{ m['content'] }}{% endfor %}",
            TALK,
            "the conversation is not one row: it makes 2",
        ),
        ("{{ raise_exception('only two turns') }}", TALK, "refuses a conversation: only two turns"),
    ],
)
def test_conversations_that_cannot_be_told_apart(template: str | None, messages: Any, message: str) -> None:
    found = tokenizer(template)
    add_chat_template(found)
    with pytest.raises(DataError, match=message):
        encode_conversation(found, messages)


def test_a_conversation_that_the_template_refuses_is_one_unusable_row() -> None:
    found = tokenizer("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(UnusableRowError, match="refuses a conversation: roles must alternate") as caught:
        encode_conversation(found, TALK)
    assert caught.value.reason == "the chat template refuses a conversation"


def test_a_tokenizer_needs_an_end_for_answers() -> None:
    found = tokenizer()
    found.eos_token = None
    with pytest.raises(DataError, match="neither a chat template nor an end-of-text token"):
        make(context(64, found))
