"""Where the answers of a conversation are: what the model reads before each, and what it has to write."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from shardyard.data.chat.conversation import (
    REASONING,
    Call,
    Conversation,
    Message,
    calls_of,
    function_of,
    said_by,
    with_function,
)
from shardyard.data.chat.dialect import ANSWER, OTHER_ANSWER, Dialect
from shardyard.data.chat.special import Specials
from shardyard.data.chat.template import Template, common_prefix
from shardyard.errors import UnusableRowError

# A tag that a prompt opens for the model to think in, and one that it opens and closes so that the model does not.
_OPENED = re.compile(r"(?:<([\w:]*(?:think|thought|reason)[\w:]*)>|\[(THINK)\])\s*$", re.IGNORECASE)
_CLOSED = re.compile(
    r"(?:<([\w:]*(?:think|thought|reason)[\w:]*)>\s*</\1>|\[(THINK)\]\s*\[/THINK\])\s*$", re.IGNORECASE
)
_SENTINEL = "\U000f0003"


@dataclass(frozen=True)
class Answer:
    """The answer at `index` of a conversation: `prompt` is what the model continues, `text` what it has to write."""

    index: int
    prompt: str
    text: str

    @property
    def whole(self) -> str:
        """The conversation up to the end of the answer."""
        return self.prompt + self.text


class Answers:
    """Finds the answers of conversations in one template."""

    def __init__(self, template: Template, dialect: Dialect, specials: Specials) -> None:
        self._template, self._dialect, self._specials = template, dialect, specials

    def answer(self, conversation: Conversation, index: int) -> Answer:
        """The answer of message `index`: exactly what follows the prompt that the template gives a model there, up to
        and including the token that ends the turn.

        Raises:
            UnusableRowError: the template refuses the conversation up to there.
        """
        shown = self.ended(conversation, index)
        if index == 0:
            prompt = self._first_prompt(conversation, shown)
        else:
            prompt = self._template.render(conversation.upto(index), answering=True)
            if self._dialect.header == "":
                header = self._header(conversation, index, shown)
                # Space before an answer is its beginning; text is the header of the turn.
                prompt = prompt if header.startswith(prompt) and not header[len(prompt) :].strip() else header
        follows = shown.startswith(prompt)
        text = shown[len(prompt) :] if follows else self._continued(conversation, index, prompt, shown)
        check_calls(conversation.messages[index], text)
        return Answer(index, prompt, text)

    def ended(self, conversation: Conversation, index: int) -> str:
        """The conversation up to the token that ends message `index`.

        Templates that leave that to the beginning of the next turn get the token with which it begins, others the
        end-of-text token.
        """
        turns, dialect = conversation.upto(index + 1), self._dialect
        shown = self._template.render(turns)
        behind = len(shown) - self._length_behind(turns, shown)
        end = self._specials.end_of_turn(shown[behind:], dialect.usual_end)
        if end is not None:
            return shown[: behind + end]
        if "tool_calls" in turns.messages[-1] and dialect.next_tool is not None:
            return shown.rstrip() + dialect.next_tool
        if dialect.next_user is not None:
            return shown[:behind] + shown[behind:].removesuffix(dialect.tail or "").rstrip() + dialect.next_user
        return shown[:behind] + shown[behind:].rstrip() + (self._specials.eos or "")

    def _length_behind(self, turns: Conversation, shown: str) -> int:
        """Number of characters that the template writes after the text of the last message."""
        message, tail = turns.messages[-1], self._dialect.tail
        content = message["content"]
        if isinstance(content, str) and tail is not None and not calls_of(message):
            followed = (content + tail, content.strip() + tail)
            if shown.endswith(followed):
                return len(tail)
        lengths = []
        for longer in _longer(message):
            text = self._template.accepts(
                [*turns.messages[:-1], longer],
                tools=turns.tools,
                documents=turns.documents,
                variables=turns.variables,
            )
            if text is not None and text != shown:
                lengths.append(len(common_prefix(shown[::-1], text[::-1])))
        return min(lengths, default=len(tail or ""))

    def _header(self, conversation: Conversation, index: int, shown: str) -> str:
        """What comes before the text of an answer, whatever its text."""
        earlier = conversation.upto(index)
        answers = self._dialect.spoken(Conversation([ANSWER, OTHER_ANSWER])).messages
        texts = [self._template.render(earlier.having([*earlier.messages, answer])) for answer in answers]
        return common_prefix(*texts, shown)

    def _first_prompt(self, conversation: Conversation, shown: str) -> str:
        """What comes before an answer that nothing was asked for; few templates accept an empty conversation."""
        header, usual = self._header(conversation, 0, shown), self._dialect.header or ""
        tag = _CLOSED.search(usual) or _OPENED.search(usual)
        begin = usual[: tag.start()] if tag is not None else usual
        return header[: header.rfind(begin)] + usual if begin and begin in header else header

    def _continued(self, conversation: Conversation, index: int, prompt: str, shown: str) -> str:
        """The answer after a prompt with which the template does not begin the turn when it shows it."""
        message = conversation.messages[index]
        closed, opened = _CLOSED.search(prompt), _OPENED.search(prompt)
        tag = closed or opened
        if tag is not None and shown.startswith(prompt[: tag.start()]):
            text = shown[tag.start() :]
        else:
            text = shown[len(self._header(conversation, index, shown)) :]
        if closed is not None:
            start, end = _tags(closed)
            return text.partition(end)[2].lstrip() if text.startswith(start) else text
        return _thought(message, text, opened, compact=self._closes_at_once()) if opened is not None else text

    def _closes_at_once(self) -> bool:
        """Whether the template writes an answer without a thought as `<think></think>`."""
        return re.search(r"<([\w:]+)></\1>", self._template.source()) is not None


def check_calls(message: Message, text: str) -> None:
    """Check that an answer names the functions that it calls.

    Raises:
        UnusableRowError: the template does not show them, for example where the answer also has a content.
    """
    called = [str(function_of(call)["name"]) for call in calls_of(message)]
    if any(name not in text for name in called):
        raise UnusableRowError("the chat template does not show tool calls", f"of {called} beside this content")


def _thought(message: Message, text: str, opened: re.Match[str], *, compact: bool) -> str:
    """What follows an opened thought: the message's reasoning and the end of the thought, then the answer as shown.

    An answer without reasoning closes the thought at once.
    """
    start, end = _tags(opened)
    space = opened.group()[len(start) :]
    content = said_by(message)
    if text.startswith(start):
        return text[len(start) :].removeprefix(space) if space else text[len(start) :]
    if end in content:
        thought, _, said = content.rpartition(end)
        lead = said[: len(said) - len(said.lstrip())]
        thought = thought.partition(start)[2] if start in thought else thought
        return thought.removeprefix(space) + end + lead + text.removeprefix(lead)
    reasoning = next((str(message[name]) for name in REASONING if message.get(name)), "").strip("\n")
    if text.startswith(end):
        return reasoning + text
    if not reasoning and compact:
        return f"{end}{text}"
    return f"{'' if space else chr(10)}{reasoning}\n{end}\n\n{text}"


def _tags(found: re.Match[str]) -> tuple[str, str]:
    tag = found.group(1) or found.group(2)
    return (f"<{tag}>", f"</{tag}>") if found.group(1) else (f"[{tag}]", f"[/{tag}]")


def _longer(message: Message) -> list[Message]:
    """The message with a character more at the end of its content, and at the end of its last tool call."""
    content, calls = message["content"], calls_of(message)
    made: list[Message] = []
    if isinstance(content, str):
        made.append({**message, "content": content + _SENTINEL})
    elif isinstance(content, list) and content and isinstance(content[-1], Mapping) and "text" in content[-1]:
        last = {**content[-1], "text": f"{content[-1]['text']}{_SENTINEL}"}
        made.append({**message, "content": [*content[:-1], last]})
    if calls:
        made.append({**message, "tool_calls": [*calls[:-1], _longer_call(calls[-1])]})
    return made


def _longer_call(call: Call) -> Call:
    arguments = function_of(call).get("arguments", {})
    if isinstance(arguments, Mapping):
        return with_function(call, arguments={**arguments, _SENTINEL: _SENTINEL})
    try:
        value = json.loads(str(arguments))
    except ValueError:
        value = None
    if not isinstance(value, dict):
        return with_function(call, arguments=f"{arguments}{_SENTINEL}")
    return with_function(call, arguments=json.dumps({**value, _SENTINEL: _SENTINEL}, ensure_ascii=False))
