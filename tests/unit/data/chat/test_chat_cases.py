"""Templates and messages that other systems stumbled over: what is trained, and what is said about it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from shardyard.data.chat import ChatEncoder, add_chat_template, chat_prompt, prepare_chat
from shardyard.data.formats.conversations import make
from shardyard.data.formats.inputs import FormatInputs
from shardyard.data.formats.preferences import make as make_preferences
from shardyard.data.tokenizers.tokenizer import load_tokenizer
from shardyard.errors import DataError, UnusableRowError
from shardyard.recipe.schema import Chat, Data, Source
from support.chat.cases import TOOL, answer, call, chat_tokenizer, result, spans_of, system, user

TOKENS = ["<u>", "<a>", "<e>", "<s>"]
# An answer is shown with an empty thought only while it is the last.
REWRITES = (
    "{% set seen = namespace(last=-1) %}{% for m in messages if m.role == 'user' %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set seen.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{{ '<a>' if m.role == 'assistant' else '<u>' }}"
    "{{ '<think></think>' if m.role == 'assistant' and loop.index0 > seen.last }}{{ m.content }}<e>{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)
# The prompt opens a thought, and no answer is shown with one.
DROPS = (
    "{% for m in messages %}{% if m.role == 'user' %}<u>{{ m.content }}{% else %}"
    "<a>{{ m.content.split('</think>')[-1] }}<e>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<a><think>\n{% endif %}"
)
HEADLESS = "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}<e>\n{% endfor %}"
ENDLESS = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<a>{% generation %}{{ m.content }}<e>{% endgeneration %}"
    "{% else %}<u>{{ m.content }}<e>{% endif %}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)
TALK = [user("a?"), answer("A."), user("b?"), answer("B.")]
GENERATOR = np.random.default_rng(0)


def tokenizer(template: str | None, *tokens: str) -> PreTrainedTokenizerFast:
    found = load_tokenizer("bytes")
    found.add_special_tokens({"additional_special_tokens": list(tokens or TOKENS)})
    found.chat_template = template
    return found


def trained(found: PreTrainedTokenizerFast, messages: Sequence[Any], loss_on: Any = None, **more: Any) -> list[Any]:
    """The texts of the rows up to each trained text, and the trained texts."""
    add_chat_template(found)
    rows = ChatEncoder(found, loss_on).rows({"messages": messages, **more})
    return [spans_of(found, row) for row in rows]


def inputs(found: PreTrainedTokenizerFast, chat: Chat | None = None) -> FormatInputs:
    return FormatInputs(Data(sequence_length=400, train=[Source(path="x.jsonl")]), found, chat=chat or Chat())


def test_history_that_is_rewritten_makes_a_row_of_each_answer() -> None:
    rows = trained(tokenizer(REWRITES), TALK)
    assert rows == [
        [("<u>a?<e><a>", "<think></think>A.<e>")],
        [("<u>a?<e><a>A.<e><u>b?<e><a>", "<think></think>B.<e>")],
    ]
    assert trained(tokenizer(REWRITES), TALK, "last") == rows[1:]


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (answer("A."), "\n</think>\n\nA.<e>"),
        (answer("<think>\nwhy</think>A."), "why</think>A.<e>"),
        (answer("<think>\nwhy\n</think>\n\nA."), "why\n</think>\n\nA.<e>"),
        (answer("A.", reasoning_content="why"), "why\n</think>\n\nA.<e>"),
    ],
)
def test_a_thought_that_the_prompt_opens_is_closed_before_the_answer(message: Any, text: str) -> None:
    assert trained(tokenizer(DROPS), [user("a?"), message]) == [[("<u>a?<a><think>\n", text)]]


def test_the_header_of_a_template_without_a_prompt_is_not_trained_and_is_exported(tmp_path: Path) -> None:
    found = tokenizer(HEADLESS)
    notes = prepare_chat(found, Chat())
    assert "writes no header for the model to continue" in " ".join(notes.remarks)
    assert trained(found, TALK) == [
        [
            ("<s>user\na?<e>\n<s>assistant\n", "A.<e>"),
            ("<s>user\na?<e>\n<s>assistant\nA.<e>\n<s>user\nb?<e>\n<s>assistant\n", "B.<e>"),
        ]
    ]
    found.save_pretrained(tmp_path)
    exported = AutoTokenizer.from_pretrained(tmp_path)
    asked = exported.apply_chat_template(TALK[:1], tokenize=False, add_generation_prompt=True)
    assert asked == chat_prompt(found, "a?") == "<s>user\na?<e>\n<s>assistant\n"
    assert not prepare_chat(exported, Chat()).remarks


def test_a_template_without_an_end_gets_the_end_of_text_and_a_notice() -> None:
    found = tokenizer(ENDLESS)
    notes = prepare_chat(found, Chat())
    assert "ends answers with no token of the tokenizer" in " ".join(notes.remarks)
    assert found.chat_template == ENDLESS
    end = found.eos_token
    rows = trained(found, TALK)
    assert rows == [
        [("user: a?\nassistant: ", f"A.{end}")],
        [("user: a?\nassistant: A.\nuser: b?\nassistant: ", f"B.{end}")],
    ]
    found.eos_token = None
    with pytest.raises(DataError, match="ends an answer with no token, and the tokenizer has no end-of-text token"):
        ChatEncoder(found)


def test_an_end_that_is_no_token_is_followed_by_one() -> None:
    found = load_tokenizer("bytes")
    found.chat_template = MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    assert trained(found, TALK[:2]) == [[("<u>a?<e><a>", f"A.<e>{found.eos_token}")]]


def test_marks_are_trained_as_transformers_masks_them() -> None:
    found = tokenizer(MARKED)
    assert ChatEncoder(found).loss_on() == "marked"
    (row,) = ChatEncoder(found).rows({"messages": TALK})
    theirs = found.apply_chat_template(TALK, return_dict=True, return_assistant_tokens_mask=True)
    assert row.ids == theirs["input_ids"]
    assert row.is_answer == [bool(one) for one in theirs["assistant_masks"]]
    assert trained(found, TALK, "all") == [spans_of(found, row)]
    weighted = [TALK[0], {**TALK[1], "weight": 0}, *TALK[2:]]
    assert [text for row in trained(found, weighted) for _, text in row] == ["B.<e>"]
    with pytest.raises(DataError, match=r"loss_on is marked, and the chat template has no \{% generation %\} marks"):
        ChatEncoder(tokenizer(REWRITES), "marked")


def test_marks_of_rewritten_history_are_those_of_the_last_answer() -> None:
    marked = REWRITES.replace("{{ '<think>", "{% generation %}{{ '<think>").replace(
        "{{ m.content }}<e>{% endfor %}", "{{ m.content }}<e>{% endgeneration %}{% endfor %}"
    )
    found = tokenizer(marked)
    assert ChatEncoder(found).loss_on() == "marked"
    assert [[text for _, text in row] for row in trained(found, TALK)] == [
        ["<think></think>A.<e>"],
        ["<think></think>B.<e>"],
    ]


def test_a_closed_thought_drops_the_reasoning() -> None:
    rows = trained(
        chat_tokenizer("qwen3"),
        [user("a?"), answer("A.", reasoning_content="why")],
        chat_template_kwargs={"enable_thinking": False},
    )
    assert [text for _, text in rows[0]] == ["A.<|im_end|>"]
    assert rows[0][0][0].endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_variables_of_the_recipe_are_defaults_of_the_exported_template() -> None:
    found, plain = chat_tokenizer("qwen3"), chat_tokenizer("qwen3")
    for _ in range(2):  # once more changes nothing
        prepare_chat(found, Chat(template_kwargs={"enable_thinking": False}))
    assert chat_prompt(found, "a?").endswith("<think>\n\n</think>\n\n")
    for value in (True, False):
        given = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": value}
        assert found.apply_chat_template(TALK[:1], **given) == plain.apply_chat_template(TALK[:1], **given)


def test_a_template_of_the_recipe_replaces_the_tokenizers(tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text(REWRITES, encoding="utf-8")
    for template in (str(file), REWRITES):
        found = tokenizer(MARKED)
        make(inputs(found, Chat(template=template)))
        assert found.chat_template == REWRITES
    with pytest.raises(DataError, match=r"chat\.template: .*gone\.jinja cannot be read"):
        prepare_chat(tokenizer(None), Chat(template=str(tmp_path / "gone.jinja")))
    with pytest.raises(DataError, match="no valid Jinja: line 1"):
        prepare_chat(tokenizer(None), Chat(template="{% for %}"))


def test_a_date_in_the_template_is_said() -> None:
    found = tokenizer("{{ strftime_now('%d') }}" + MARKED)
    assert "rows differ from day to day" in " ".join(prepare_chat(found, Chat()).remarks)


def test_calls_that_the_template_hides_make_a_row_unusable() -> None:
    talk = [user("Weather?"), answer("Looking.", tool_calls=[call("Oslo")])]
    hides = REWRITES.replace("{{ m.content }}", "{{ m.content or m.tool_calls[0].function | tojson }}")
    for template in (REWRITES, hides):
        with pytest.raises(UnusableRowError, match="the chat template does not show tool calls"):
            trained(tokenizer(template), talk)
    assert "weather" in trained(tokenizer(hides), [talk[0], {**talk[1], "content": ""}])[0][0][1]


@pytest.mark.parametrize("arguments", ['{"city": "Oslo"}', {"city": "Oslo"}])
def test_arguments_are_given_as_the_template_needs_them(arguments: Any) -> None:
    made = {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    talk = [user("Weather?"), answer(None, tool_calls=[made]), result("3"), answer("Cold.")]
    texts = {name: trained(chat_tokenizer(name), talk)[0][0][1] for name in ("llama3", "deepseek_v3")}
    assert texts["llama3"] == '{"name": "weather", "parameters": {"city": "Oslo"}}<|eot_id|>'
    assert '```json\n{"city": "Oslo"}\n```' in texts["deepseek_v3"]


@pytest.mark.parametrize(
    "message",
    [
        answer("", tool_calls=[{"name": "weather", "arguments": {"city": "Oslo"}, "id": "1"}]),
        answer(None, function_call={"name": "weather", "arguments": '{"city": "Oslo"}'}),
        answer("", tool_calls='[{"function": {"name": "weather", "arguments": {"city": "Oslo"}}}]'),
    ],
    ids=["flat", "of one function", "JSON text"],
)
def test_calls_of_other_forms_are_those_of_transformers(message: Any) -> None:
    for name in ("qwen2_5", "llama3"):
        usual = trained(chat_tokenizer(name), [user("Weather?"), answer("", tool_calls=[call("Oslo")])])
        assert trained(chat_tokenizer(name), [user("Weather?"), message]) == usual


@pytest.mark.parametrize(("returned", "text"), [({"temp": 3}, '{"temp": 3}'), ([1, "ä"], '[1, "ä"]'), (None, "")])
def test_results_of_tools_are_written_as_json(returned: Any, text: str) -> None:
    for name, shown in (("qwen2_5", f"<tool_response>\n{text}\n</tool_response>"), ("llama3", text)):
        talk = [user("a?"), answer("", tool_calls=[call("Oslo")]), result(returned), answer("A.")]
        assert shown in trained(chat_tokenizer(name), talk)[0][1][0]


def test_tools_may_be_texts_of_json() -> None:
    texts = [trained(chat_tokenizer("qwen2_5"), TALK, tools=tools) for tools in ([TOOL], [json.dumps(TOOL)])]
    assert texts[0] == texts[1]


def test_a_developer_is_the_system_where_the_template_knows_none() -> None:
    talk = [{"role": "developer", "content": "Be kind."}, *TALK[:2]]
    for name in ("llama2", "deepseek_r1"):
        assert trained(chat_tokenizer(name), talk) == trained(chat_tokenizer(name), [system("Be kind."), *TALK[:2]])
    assert "<|im_start|>developer\nBe kind." in trained(chat_tokenizer("qwen2_5"), talk)[0][0][0]


@pytest.mark.parametrize("role", ["system", "developer", "tool", "critic"])
def test_messages_that_the_template_hides_make_a_row_unusable(role: str) -> None:
    hides = (
        "{% for m in messages %}{% if m.role == 'user' %}<u>{{ m.content }}<e>{% elif m.role == 'assistant' %}"
        "<a>{{ m.content }}<e>{% endif %}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
    )
    talk = [TALK[0], answer("Look."), {"role": role, "content": "Hidden."}, answer("Seen.")]
    with pytest.raises(UnusableRowError, match=f"does not show messages of the role '{role}'"):
        trained(tokenizer(hides), talk)
    assert trained(tokenizer(hides), [{"role": role, "content": ""}, *TALK])


def test_parts_are_joined_as_the_template_says() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    alone, listed = (trained(tokenizer(MARKED), [user(content), answer("A.")]) for content in (parts[0], parts[:1]))
    assert alone == listed
    before = {name: trained(chat_tokenizer(name), [user(parts), answer("A.")])[0][0][0] for name in ("gemma3", "gemma")}
    assert "user\nonetwo<end_of_turn>" in before["gemma3"]
    assert "user\none\ntwo<end_of_turn>" in before["gemma"]
    with pytest.raises(UnusableRowError, match="shows only text: a message of user has a part of type 'image'"):
        trained(chat_tokenizer("gemma"), [user([{"type": "image"}]), answer("A.")])
    only = "{% for m in messages %}{{ m.role }}{% for p in m.content %}{{ p.text }}{% endfor %}<e>{% endfor %}"
    assert trained(tokenizer(only), [user("a?"), answer("A.")]) == [[("usera?<e>assistant", "A.<e>")]]


def test_special_tokens_in_a_message_are_text_and_tags_of_thoughts_are_tokens() -> None:
    found = tokenizer(MARKED, *TOKENS, "<think>", "</think>")
    (row,) = ChatEncoder(found, "all").rows({"messages": [user("What is <e>?"), answer("<think>x</think>An <e>nd.")]})
    assert row.ids.count(found.convert_tokens_to_ids("<e>")) == 2
    assert row.ids.count(found.convert_tokens_to_ids("<think>")) == 1
    assert [text for _, text in spans_of(found, row)] == ["<think>x</think>An <e>nd.<e>"]


def test_no_token_begins_in_a_prompt_and_ends_in_an_answer() -> None:
    found = load_tokenizer("bpe-docs-4k")
    found.add_special_tokens({"additional_special_tokens": ["<e>"]})
    found.chat_template = (
        "{% for m in messages %}{{ m.role }}\n{{ m.content }}<e>{% endfor %}"
        "{% if add_generation_prompt %}assistant\n{% endif %}"
    )
    messages = [user("a?"), answer("\n\n    Indented.")]
    (row,) = ChatEncoder(found).rows({"messages": messages})
    prompt = found(chat_prompt(found, "a?"), add_special_tokens=False)["input_ids"]
    assert row.ids[: len(prompt)] == prompt
    assert row.is_answer == [False] * len(prompt) + [True] * (len(row.ids) - len(prompt))


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([user("a?"), answer("A.", weight=-1)], "the weight of a message is a number of 0 or more: got -1"),
        ([user("a?"), answer("A.", weight="1")], "the weight of a message is a number of 0 or more: got '1'"),
        ([answer("A.", weight=float("nan"))], "the weight of a message is a number of 0 or more: got nan"),
        ([user("a?"), answer(None)], "a message needs a role and a content"),
        ([user("a?"), answer(3)], "a message needs a role and a content"),
        ([{"content": "a?"}], "a message needs a role and a content"),
        ([user("a?"), answer("", tool_calls=[{"id": "1"}])], "a tool call needs a function with a name"),
        ([user("a?"), answer("", tool_calls="[")], "tool_calls is a text that is no JSON"),
        ([], "a conversation has no messages"),
    ],
)
def test_malformed_messages_are_unusable_rows(messages: Any, message: str) -> None:
    with pytest.raises(UnusableRowError, match=message):
        trained(tokenizer(MARKED), messages)


def test_refusals_of_a_template_are_unusable_rows() -> None:
    strict = "{% if messages[0].role == 'assistant' %}{{ raise_exception('roles must alternate') }}{% endif %}" + MARKED
    for talk in ([answer("Hi."), *TALK], [system("x"), answer("Hi.")]):
        for template in (strict, "{{ messages[0].content + 1 }}", "{{ 1 // 0 }}"):
            if talk[0]["role"] == "assistant" or template != strict:
                with pytest.raises(UnusableRowError, match="the chat template refuses a conversation") as caught:
                    trained(tokenizer(template), talk)
                assert not isinstance(caught.value, jinja2.TemplateError)


def test_rows_of_a_pair_end_with_its_answers() -> None:
    found = tokenizer(REWRITES)
    rows = make_preferences(inputs(found))
    example: Mapping[str, Any] = {"prompt": TALK[:3], "chosen": [answer("B.")], "rejected": [answer("C.")]}
    row = rows.row({**example, "prompt": [TALK[0], {**TALK[1], "weight": 0}, TALK[2]]}, GENERATOR)
    for name, text in (("chosen", "<think></think>B.<e>"), ("rejected", "<think></think>C.<e>")):
        (labels,) = row[f"{name}_labels"]
        assert found.decode(labels[labels != -100]) == text


def test_every_answer_after_the_prompt_of_a_pair_is_compared_as_it_is_written() -> None:
    found = tokenizer(REWRITES)
    rows = make_preferences(inputs(found))
    row = rows.row({"prompt": "a?", "chosen": TALK[1:], "rejected": [answer("C.")]}, GENERATOR)
    sequences = [
        (found.decode(ids), found.decode(labels[labels != -100]))
        for ids, labels in zip(row["chosen_input_ids"], row["chosen_labels"], strict=True)
    ]
    assert [targets for _, targets in sequences] == ["<think></think>A.<e>", "<think></think>B.<e>"]
    assert sequences[1][0].startswith("<u>a?<e><a>A.<e><u>b?<e><a><think></think>B.")
    batch = rows.collate([row, rows.row({"prompt": "a?", "chosen": "D.", "rejected": "E."}, GENERATOR)])
    assert batch["chosen_pairs"].int().tolist() == [[1, 0], [1, 0], [0, 1]]
    assert "rejected_pairs" not in batch
    notes = prepare_chat(tokenizer(REWRITES), Chat(), all_answers=False)
    assert "each is compared in a sequence that ends with it" in " ".join(notes.remarks)


def test_a_pair_of_equal_answers_has_nothing_to_compare() -> None:
    rows = make_preferences(inputs(tokenizer(MARKED)))
    with pytest.raises(UnusableRowError, match="chosen and rejected are the same"):
        rows.row({"prompt": "a?", "chosen": "A.", "rejected": [answer("A.")]}, GENERATOR)


def test_the_answers_of_a_pair_have_no_other_weight_than_0_and_1() -> None:
    rows = make_preferences(inputs(tokenizer(MARKED)))
    with pytest.raises(UnusableRowError, match="the answers of a pair have no weight but 0 and 1"):
        rows.row({"prompt": "a?", "chosen": [answer("A.", weight=0.5)], "rejected": "B."}, GENERATOR)


@pytest.mark.parametrize("name", ["qwen2_5", "llama3", "zephyr"])
def test_a_pair_is_read_as_trl_reads_it(name: str) -> None:
    """There a completion is what follows the prompt in the whole conversation, as the template shows it."""
    found = chat_tokenizer(name)
    rows = make_preferences(inputs(found))
    prompt = [system("Be kind."), user("One?"), answer("First."), user("Two?")]
    sides = {"chosen": [answer("Second."), user("Three?"), answer("Third.")], "rejected": [answer("No.")]}
    row = rows.row({"prompt": [*prompt[:2], {**prompt[2], "weight": 0}, prompt[3]], **sides}, GENERATOR)
    asked = found.apply_chat_template(prompt, tokenize=True, add_generation_prompt=True)["input_ids"]
    for side, turns in sides.items():
        whole = found.apply_chat_template([*prompt, *turns], tokenize=True)["input_ids"]
        (ids,), (labels,) = row[f"{side}_input_ids"], row[f"{side}_labels"]
        assert [*ids, whole[-1]] == whole
        assert whole[: len(asked)] == asked
        assert (labels[: len(asked) - 1] == -100).all()
        assert labels[len(asked) - 1] == whole[len(asked)]
        # Only what the assistant writes is compared, not the turns of the user between its answers.
        (encoded,) = ChatEncoder(found).rows({"messages": [*prompt, *turns]})
        later = [one for _, one in spans_of(found, encoded)][1:]
        assert found.decode(labels[labels != -100]) == "".join(later)


def test_weights_are_those_of_a_messages_tokens() -> None:
    found = tokenizer(MARKED)
    talk = [TALK[0], {**TALK[1], "weight": 0.25}, TALK[2], {**TALK[3], "weight": 2}]
    for loss_on in ("marked", "all"):
        (row,) = ChatEncoder(found, loss_on).rows({"messages": talk})
        assert [weight for weight in row.weights if weight] == [0.25] * 3 + [2.0] * 3
