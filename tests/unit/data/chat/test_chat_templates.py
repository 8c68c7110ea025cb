"""Twenty-one chat formats and twelve kinds of conversation: the trained tokens are those that a model has to write.

Two independent references: `written`, what each format's documentation says an answer looks like, and transformers'
own `apply_chat_template` with a generation prompt, which is what a model reads before it answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from shardyard.data.answer_ends import answer_ends
from shardyard.data.chat import ChatEncoder, Encoded
from shardyard.errors import UnusableRowError
from support.chat.cases import CONVERSATIONS, FORMATS, answers_of, chat_tokenizer, spans_of

_JSON = '{{"name": "weather", "arguments": {{"city": "{city}"}}}}'
_QWEN_CALL = "<tool_call>\n" + _JSON + "\n</tool_call>"
_CALLS: Mapping[str, str] = {
    "deepseek_v3": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
    '{{"city": "{city}"}}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>',
    "glm4": "\n<think></think>\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>{city}</arg_value>\n"
    "</tool_call><|observation|>",
    "gpt_oss": ' to=functions.weather<|channel|>commentary json<|message|>{{"city": "{city}"}}<|call|>',
    "granite": f"<|tool_call|>[{_JSON}]<|end_of_text|>",
    "lfm2": '<|tool_call_start|>[weather(city="{city}")]<|tool_call_end|><|im_end|>',
    "llama3": _JSON.replace("arguments", "parameters") + "<|eot_id|>",
    "mistral_v3": "[TOOL_CALLS] [" + _JSON[:-2] + ', "id": "call00001"}}]</s>',
    "nemotron3": "</think>\n<tool_call>\n<function=weather>\n<parameter=city>\n{city}\n</parameter>\n</function>\n"
    "</tool_call><|im_end|>",
    "qwen2_5": f"{_QWEN_CALL}<|im_end|>",
    "qwen3": f"<think>\n\n</think>\n\n{_QWEN_CALL}<|im_end|>",
}
# What an answer looks like: {said} its text, {thought} its reasoning.
_PLAIN: Mapping[str, str] = {
    "deepseek_r1": "\n</think>\n\n{said}<｜end▁of▁sentence｜>",
    "glm4": "\n<think></think>\n{said}<|user|>",
    "gpt_oss": "<|channel|>final<|message|>{said}<|return|>",
    "llama2": " {said} </s>",
    "mistral_v3": " {said}</s>",
    "nemotron3": "</think>{said}<|im_end|>",
    "qwen3": "<think>\n\n</think>\n\n{said}<|im_end|>",
    "zephyr": "\n{said}</s>",
}
_THOUGHT: Mapping[str, str] = {
    "deepseek_r1": "{thought}\n</think>\n\n{said}<｜end▁of▁sentence｜>",
    "glm4": "\n<think>{thought}</think>\n{said}<|user|>",
    "gpt_oss": "<|channel|>analysis<|message|>{thought}<|end|>"
    "<|start|>assistant<|channel|>final<|message|>{said}<|return|>",
    "nemotron3": "{thought}\n</think>\n{said}<|im_end|>",
    "qwen3": "<think>\n{thought}\n</think>\n\n{said}<|im_end|>",
}


def written(name: str, message: Mapping[str, Any]) -> str:
    """What a model of this format writes for a message, after what it is prompted with."""
    content = message["content"]
    said = content[0]["text"] if isinstance(content, list) else content or ""
    if message.get("tool_calls"):
        city = "Oslo" if "Oslo" in str(message["tool_calls"]) else "Rome"
        return _CALLS[name].format(city=city)
    thought = message.get("reasoning_content")
    if thought and name in _THOUGHT:
        return _THOUGHT[name].format(said=said, thought=thought)
    if not said and name == "glm4":
        return "\n<think></think><|user|>"
    return _PLAIN.get(name, "{said}" + FORMATS[name].ends[0]).format(said=said)


def asked(name: str, example: Mapping[str, Any], count: int) -> str:
    """What transformers gives a model to answer after the first `count` messages."""
    messages = [_as_given(name, message) for message in example["messages"][:count]]
    text = tokenizer_of(name).apply_chat_template(
        messages, tools=example.get("tools"), tokenize=False, add_generation_prompt=True
    )
    return str(text)


def _as_given(name: str, message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as somebody who calls the model passes it: arguments as mappings, no keys without a value."""
    given = {key: value for key, value in message.items() if value is not None or key == "content"}
    if isinstance(given["content"], list):
        given["content"] = given["content"][0]["text"]
    if given.get("tool_calls") and name != "deepseek_v3":
        given["tool_calls"] = [
            {**call, "function": {"name": "weather", "arguments": {"city": "Oslo" if "Oslo" in str(call) else "Rome"}}}
            for call in given["tool_calls"]
        ]
    return given


@cache
def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    return chat_tokenizer(name)


@cache
def encoder_of(name: str) -> ChatEncoder:
    return ChatEncoder(tokenizer_of(name))


@cache
def rows_of(name: str, kind: str) -> list[Encoded]:
    return encoder_of(name).rows(CONVERSATIONS[kind])


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kind", CONVERSATIONS)
def test_the_trained_tokens_are_what_the_model_has_to_write(name: str, kind: str) -> None:
    example = CONVERSATIONS[kind]
    if kind in FORMATS[name].refuses:
        with pytest.raises(UnusableRowError, match=r"does not show tool calls|refuses a conversation"):
            rows_of(name, kind)
        return
    spans = [span for row in rows_of(name, kind) for span in spans_of(tokenizer_of(name), row)]
    trained = answers_of(example["messages"])
    assert [text for _, text in spans] == [written(name, example["messages"][index]) for index in trained]
    # transformers itself accepts no conversation without messages: the prompt of a first answer is its header.
    prompts = [asked(name, example, index) for index in trained if index]
    assert [before for before, _ in spans][-len(prompts) :] == prompts


@pytest.mark.parametrize("name", FORMATS)
def test_a_conversation_is_one_row_where_earlier_turns_stay_as_they_are(name: str) -> None:
    kind = "earlier reasoning" if FORMATS[name].thinks else "system"
    kind = "several turns" if kind in FORMATS[name].refuses else kind
    assert (len(rows_of(name, kind)) == 1) is FORMATS[name].keeps


@pytest.mark.parametrize("name", FORMATS)
def test_generation_ends_where_answers_and_calls_end(name: str) -> None:
    ends = tokenizer_of(name).convert_ids_to_tokens(answer_ends(tokenizer_of(name)))
    assert set(FORMATS[name].ends) <= set(ends)


@pytest.mark.parametrize("name", FORMATS)
def test_only_the_last_answer_is_trained_on_request(name: str) -> None:
    example = CONVERSATIONS["several turns"]
    rows = ChatEncoder(tokenizer_of(name), "last").rows(example)
    spans = [span for row in rows for span in spans_of(tokenizer_of(name), row)]
    assert spans == [(asked(name, example, 5), written(name, example["messages"][5]))]
