"""Conversations as text and tokens: chat templates and answer masks.

T: tokens of a conversation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypedDict

import jinja2
from transformers import PreTrainedTokenizerFast

from shardyard.errors import DataError, UnusableRowError

# Roles as words, one turn per line, the end-of-text token after each answer.
PLAIN_TEMPLATE = (
    "{% if bos_token %}{{ bos_token }}{% endif %}"
    "{% for message in messages %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Encoded:
    """Token ids [T], and for each whether it belongs to an answer [T]."""

    ids: list[int]
    is_answer: list[bool]


def add_chat_template(tokenizer: PreTrainedTokenizerFast) -> None:
    """Give a tokenizer without a chat template the plain one; it is saved with the tokenizer.

    Raises:
        DataError: the tokenizer has no token that can end an answer.
    """
    if tokenizer.chat_template is not None:
        return
    if tokenizer.eos_token is None:
        raise DataError(
            "the tokenizer has neither a chat template nor an end-of-text token (eos_token) to end answers with; use "
            "one that has one."
        )
    tokenizer.chat_template = PLAIN_TEMPLATE


def chat_prompt(tokenizer: PreTrainedTokenizerFast, prompt: str) -> str:
    """A prompt in the chat template, up to the beginning of the answer."""
    return _render(tokenizer, [{"role": "user", "content": prompt}], answering=True)


def encode_conversation(tokenizer: PreTrainedTokenizerFast, messages: Sequence[Mapping[str, object]]) -> Encoded:
    """Tokens of a conversation in the tokenizer's template.

    An answer is the template's text for an assistant message after the generation prompt, up to and including the token
    that ends the turn: exactly the tokens that the model has to generate. Special tokens quoted in a message are read
    as text.

    Raises:
        UnusableRowError: a message has no role or content, or the template refuses the conversation.
        DataError: the template does not render the messages before an answer as a prefix of the conversation.
    """
    turns = [_checked(message) for message in messages]
    text = _render(tokenizer, turns)
    spans = [_answer_span(tokenizer, turns, index, text) for index, turn in enumerate(turns) if _answers(turn)]
    ids: list[int] = []
    is_answer: list[bool] = []
    for start, end, literal in _pieces(text, turns, _special_tokens(tokenizer)):
        found = _tokens(tokenizer, text[start:end], literal=literal)
        ids += [token for token, _ in found]
        is_answer += [any(first <= start + at < last for first, last in spans) for _, at in found]
    return Encoded(ids, is_answer)


def _checked(message: Mapping[str, object]) -> Message:
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not isinstance(content, str):
        raise UnusableRowError(
            "a message needs a role and a content, both text", f"got {sorted(message)} in {message!r:.120}"
        )
    return {"role": role, "content": content}


def _answers(message: Message) -> bool:
    return message["role"] == "assistant"


def _render(tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message], *, answering: bool = False) -> str:
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answering))
    except (jinja2.TemplateError, ValueError, TypeError, KeyError, AttributeError) as error:
        # An empty conversation, such as the one before an assistant message that comes first, is a ValueError.
        raise UnusableRowError("the chat template refuses a conversation", str(error)) from error


def _answer_span(
    tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message], index: int, text: str
) -> tuple[int, int]:
    """Start and end of the answer `index` in the text of the whole conversation."""
    before = _render(tokenizer, messages[:index], answering=True)
    upto = _render(tokenizer, messages[: index + 1])
    if not (upto.startswith(before) and text.startswith(upto)):
        raise DataError(
            "the chat template changes earlier turns when later ones follow, so answers cannot be located; give the "
            "tokenizer a template that only appends."
        )
    content = messages[index]["content"].strip()
    after = len(before) + max(0, upto[len(before) :].find(content)) + len(content)
    ends = [at + len(token) for token in _special_tokens(tokenizer) if (at := upto.find(token, after)) >= 0]
    return len(before), min(ends, default=len(upto))


def _pieces(text: str, messages: Sequence[Message], special: Sequence[str]) -> list[tuple[int, int, bool]]:
    """(start, end, whether special tokens are plain text there); one piece if no message quotes a special token."""
    pieces: list[tuple[int, int, bool]] = []
    done = cursor = 0
    for content in (message["content"].strip() for message in messages):
        at = text.find(content, cursor)
        if at < 0:
            continue
        cursor = at + len(content)
        if any(token in content for token in special):
            pieces += [(done, at, False), (at, cursor, True)]
            done = cursor
    return [*pieces, (done, len(text), False)]


def _tokens(tokenizer: PreTrainedTokenizerFast, text: str, *, literal: bool) -> list[tuple[int, int]]:
    """Each token with the index of its first character."""
    encoded = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=literal, truncation=False
    )
    return [(token, start) for token, (start, _) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)]


def _special_tokens(tokenizer: PreTrainedTokenizerFast) -> tuple[str, ...]:
    return _special(tuple(tokenizer.all_special_tokens), tuple(map(str, tokenizer.added_tokens_decoder.values())))


@lru_cache(maxsize=8)
def _special(named: tuple[str, ...], added: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*named, *added]))
