"""Rows of tokens from conversations: which answers are trained, after which text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedTokenizerFast

from shardyard.data.chat.answers import Answer, Answers, check_calls
from shardyard.data.chat.conversation import Conversation, conversation_of, weight_of
from shardyard.data.chat.dialect import ANSWER, CALLING, USER, Dialect, dialect_of
from shardyard.data.chat.special import Specials, unmarked
from shardyard.data.chat.template import Template, common_prefix
from shardyard.data.chat.tokens import Encoded, Span, tokens_of
from shardyard.errors import DataError, UnusableRowError

LossOn = Literal["all", "last", "marked"]


@dataclass(frozen=True)
class TextRow:
    """A conversation's first `count` messages as text, and what is trained of it."""

    text: str
    spans: Sequence[Span]
    count: int


class ChatEncoder:
    """Encodes conversations in the chat template of a tokenizer.

    `loss_on` says which answers are trained: `all`, the `last` one, or what the template has `marked` with
    `{% generation %}`. By default that is `marked` if the template has marks, else `all`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, loss_on: LossOn | None = None) -> None:
        """
        Raises:
            DataError: nothing can end an answer, or the template has no marks to train by.
        """
        self._tokenizer, self._loss_on = tokenizer, loss_on
        self._template, self._specials = Template(tokenizer), Specials(tokenizer)
        self._dialects: dict[str, Dialect] = {}
        self._check(self.dialect(None))

    @property
    def source(self) -> str:
        """The template for conversations without tools."""
        return self._template.source()

    @property
    def eos(self) -> str | None:
        """The token that ends answers of templates without one."""
        eos: str | None = self._specials.eos
        return eos

    def dialect(self, tools: object) -> Dialect:
        """What the template for conversations with these tools expects and writes."""
        source = self._template.source(tools)
        if source not in self._dialects:
            self._dialects[source] = dialect_of(self._template, self._specials, tools)
        return self._dialects[source]

    def loss_on(self, tools: object = None) -> LossOn:
        """Which answers are trained."""
        return self._loss_on or ("marked" if self.dialect(tools).marks else "all")

    def rows(self, example: Mapping[str, object]) -> list[Encoded]:
        """The rows of an example: `messages`, and if present `tools`, `documents` and `chat_template_kwargs`.

        One row, unless the template shows an earlier answer otherwise once the conversation goes on: then an answer is
        trained in a row that ends with it. None if no answer is trained.

        Raises:
            UnusableRowError: a message is malformed, or the template refuses or does not show it.
        """
        conversation = self._spoken(example)
        if self._specials.quoted_in(conversation):
            conversation = self._marked(conversation)
        return [self._encoded(row.text, row.spans) for row in self._made(conversation)]

    def texts(self, example: Mapping[str, object]) -> list[TextRow]:
        """The rows of an example as text, for whoever else turns it into tokens; quoted special tokens are not marked.

        Raises:
            UnusableRowError: as `rows`.
        """
        return self._made(self._spoken(example))

    def _spoken(self, example: Mapping[str, object]) -> Conversation:
        conversation = conversation_of(example)
        dialect = self.dialect(conversation.tools)
        roles = {str(message["role"]) for message in conversation.messages}
        known = self._dialects[self._template.source(conversation.tools)] = dialect.knowing(self._template, roles)
        return known.spoken(conversation)

    def _made(self, conversation: Conversation) -> list[TextRow]:
        trained = [index for index, message in enumerate(conversation.messages) if weight_of(message) > 0]
        loss_on = self.loss_on(conversation.tools)
        if loss_on == "marked":
            return _by_marks(self._template, conversation, trained)
        answers = Answers(self._template, self.dialect(conversation.tools), self._specials)
        chosen = trained[-1:] if loss_on == "last" else trained
        return _by_prompts(self._template, conversation, [answers.answer(conversation, at) for at in chosen])

    def prompt(self, messages: Sequence[Mapping[str, object]]) -> str:
        """The text that the model continues to answer these messages."""
        conversation = self.dialect(None).spoken(conversation_of({"messages": messages}))
        return self._template.render(conversation, answering=True)

    def marks_end(self) -> bool:
        """Whether the template's marks hold the token that ends a plain answer."""
        turns = self.dialect(None).spoken(Conversation([USER, ANSWER]))
        shown = self._template.marked(turns)
        marked = "".join(shown.text[first:last] for first, last in shown.spans)
        return self._specials.end_of_turn(marked) is not None

    def call_end(self) -> int | None:
        """Id of the token that ends a call of a tool; None if the template shows no calls or no token ends them."""
        try:
            rows = self.rows({"messages": [USER, CALLING]})
        except UnusableRowError:
            return None
        trained = [token for row in rows for token, is_answer in zip(row.ids, row.is_answer, strict=True) if is_answer]
        special = {*self._tokenizer.all_special_ids, *self._tokenizer.added_tokens_decoder}
        return trained[-1] if trained and trained[-1] in special else None

    def _encoded(self, text: str, spans: Sequence[Span]) -> Encoded:
        plain = unmarked(text)
        spoken = [Span(plain.at(span.first), plain.at(span.last), span.weight) for span in spans]
        return tokens_of(self._tokenizer, plain.text, spoken, plain.quoted)

    def _marked(self, conversation: Conversation) -> Conversation:
        """The conversation with marks where it quotes special tokens; they may not change what the template writes."""
        text = self._template.render(conversation)
        for whole in (True, False):
            marked = self._specials.marking(conversation, whole=whole)
            try:
                if unmarked(self._template.render(marked)).text == text:
                    return marked
            except UnusableRowError:
                continue
        raise UnusableRowError("the chat template changes special tokens that a message quotes")

    def _check(self, dialect: Dialect) -> None:
        if dialect.end_kind == "added" and self._specials.eos is None:
            raise DataError(
                "the chat template ends an answer with no token, and the tokenizer has no end-of-text token "
                "(eos_token) to end it with; use a tokenizer that has one."
            )
        if self._loss_on == "marked" and not dialect.marks:
            raise DataError(
                "chat.loss_on is marked, and the chat template has no {% generation %} marks; set it to all or last, "
                "or give a template with marks (chat.template)."
            )


def encode_conversation(tokenizer: PreTrainedTokenizerFast, messages: Sequence[Mapping[str, object]]) -> Encoded:
    """Tokens of a conversation of which the template changes nothing once it goes on.

    Raises:
        UnusableRowError: a message is malformed, or the template refuses or changes it.
    """
    rows = ChatEncoder(tokenizer).rows({"messages": messages})
    if len(rows) != 1:
        raise UnusableRowError("the conversation is not one row", f"it makes {len(rows)}")
    return rows[0]


def chat_prompt(tokenizer: PreTrainedTokenizerFast, prompt: str) -> str:
    """A prompt in the chat template, up to the beginning of the answer."""
    return ChatEncoder(tokenizer).prompt([{"role": "user", "content": prompt}])


def _by_prompts(template: Template, conversation: Conversation, answers: Sequence[Answer]) -> list[TextRow]:
    """Rows in which each answer follows exactly the prompt that a model would get for it."""
    rows: list[TextRow] = []
    for answer in answers:
        span = Span(len(answer.prompt), len(answer.whole), weight_of(conversation.messages[answer.index]))
        earlier = rows.pop().spans if rows and answer.prompt.startswith(rows[-1].text) else ()
        rows.append(TextRow(answer.whole, [*earlier, span], answer.index + 1))
    return _with_rest(template, conversation, rows)


def _by_marks(template: Template, conversation: Conversation, trained: Sequence[int]) -> list[TextRow]:
    """Rows in which what the template marks is trained, as it is shown when the answer is the last message."""
    rows: list[TextRow] = []
    for index in trained:
        shown = template.marked(conversation.upto(index + 1))
        begin = len(common_prefix(shown.text, template.render(conversation.upto(index)))) if index else 0
        spans = [span for span in shown.spans if span[0] >= begin and span[0] < span[1]]
        check_calls(conversation.messages[index], "".join(shown.text[first:last] for first, last in spans))
        if not spans:
            continue
        text, weight = shown.text[: spans[-1][1]], weight_of(conversation.messages[index])
        earlier = rows.pop().spans if rows and text.startswith(rows[-1].text) else ()
        rows.append(TextRow(text, [*earlier, *(Span(first, last, weight) for first, last in spans)], index + 1))
    return _with_rest(template, conversation, rows)


def _with_rest(template: Template, conversation: Conversation, rows: list[TextRow]) -> list[TextRow]:
    """The rows, the last with the rest of the conversation if it is shown with it."""
    if rows:
        text = template.render(conversation)
        if text.startswith(rows[-1].text):
            rows[-1] = TextRow(text, rows[-1].spans, len(conversation.messages))
    return rows
