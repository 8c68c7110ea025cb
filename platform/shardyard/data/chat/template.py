"""Rendering conversations with a tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from shardyard.data.chat.conversation import Conversation, Message
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

# What a template raises about one conversation: its own refusals, and operations on values that it does not expect.
REFUSALS = (
    jinja2.TemplateError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)


def common_prefix(*texts: str) -> str:
    """The longest text with which all texts begin."""
    first, last = min(texts), max(texts)
    for index, (one, other) in enumerate(zip(first, last, strict=False)):
        if one != other:
            return first[:index]
    return first[: len(last)]


@dataclass(frozen=True)
class Marked:
    """A rendered conversation, and the characters between `{% generation %}` and `{% endgeneration %}`."""

    text: str
    spans: Sequence[tuple[int, int]]


class Template:
    """A tokenizer's chat template. Renderings of a conversation's beginnings are kept while it is encoded."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer

    def source(self, tools: object = None) -> str:
        """The Jinja text; a tokenizer may have one of its own for conversations with tools.

        Raises:
            DataError: the tokenizer has several, and none is meant for this.
        """
        try:
            return str(self.tokenizer.get_chat_template(None, tools))
        except ValueError as error:
            raise DataError(f"the tokenizer has no chat template for these rows: {error}") from error

    def render(self, conversation: Conversation, *, answering: bool = False) -> str:
        """The text of a conversation; with `answering`, up to where the model continues.

        Raises:
            UnusableRowError: the template refuses the conversation.
            DataError: the template is no valid Jinja.
        """
        return self._rendered(conversation, answering=answering).text

    def marked(self, conversation: Conversation) -> Marked:
        """The text of a conversation with the template's own marks of what the model generates."""
        return self._rendered(conversation, marks=True)

    def accepts(self, messages: Sequence[Message], *, answering: bool = False, **fields: Any) -> str | None:
        """The text of a made-up conversation, None if the template refuses it."""
        try:
            return self.render(Conversation(messages, **fields), answering=answering)
        except UnusableRowError:
            return None

    def _rendered(self, conversation: Conversation, *, answering: bool = False, marks: bool = False) -> Marked:
        source = self.source(conversation.tools)
        variables: Mapping[str, object] = {**self.tokenizer.special_tokens_map, **conversation.variables}
        try:
            texts, spans = render_jinja_template(
                conversations=[list(conversation.messages)],
                tools=conversation.tools,
                documents=conversation.documents,
                chat_template=source,
                return_assistant_tokens_mask=marks,
                add_generation_prompt=answering,
                **variables,
            )
        except jinja2.TemplateSyntaxError as error:
            raise DataError(f"the chat template is no valid Jinja: line {error.lineno}: {error.message}.") from error
        except REFUSALS as error:
            what = str(error).strip() or type(error).__name__
            raise UnusableRowError("the chat template refuses a conversation", what) from error
        return Marked(texts[0], [(first, last) for first, last in spans[0]] if marks else [])
