"""The tokenizer's tokens that structure a conversation: which one ends a turn, and where a message quotes one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerFast

from shardyard.data.chat.conversation import Conversation, texts_of

# Characters of a private plane: around the part of a text in which special tokens are quoted.
_OPEN, _CLOSE = "\U000f0001", "\U000f0002"
_THOUGHT = re.compile(r"</?[\w:]*(?:think|thought|reason)[\w:]*>|\[/?THINK\]", re.IGNORECASE)


class Specials:
    """The special and added tokens of a tokenizer, as texts."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        named = [str(token) for token in tokenizer.all_special_tokens]
        added = tokenizer.added_tokens_decoder.values()
        self.eos = tokenizer.eos_token
        # Those that close a part of an answer, such as </tool_call>, do not close the turn.
        ends = [*named, *(str(token) for token in added if not str(token).startswith("</"))]
        self._bos = tokenizer.bos_token if tokenizer.bos_token != tokenizer.eos_token else None
        self._ends = _one_of(ends)
        # A tag around reasoning is written by the model and kept in the text of a message: it is always a token.
        quotable = [*named, *(str(token) for token in added if token.special)]
        self._quoted = _one_of([token for token in quotable if not _THOUGHT.fullmatch(token)])

    def end_of_turn(self, text: str, usual: str | None = None) -> int | None:
        """The index after the token that ends a turn in the text behind an answer; None if there is none.

        `usual` is the token that ends plain answers. A turn that ends otherwise, such as a call of a tool, ends with
        its last token if no text follows; tokens before it may quote or close arguments.
        """
        if usual is not None and (at := text.find(usual)) >= 0:
            return at + len(usual)
        ends = [match.end() for match in self._ends.finditer(text)]
        return ends[-1] if ends and not text[ends[-1] :].strip() else None

    def usual_end(self, tail: str) -> str | None:
        """The token that ends a plain answer with this text behind it.

        Of tokens without text between them it is the last, such as `<|END_RESPONSE|><|END_OF_TURN_TOKEN|>`; a token on
        the next line ends the conversation, not the turn (Phi-3).
        """
        found = None
        for match in self._ends.finditer(tail):
            if found is not None and match.start() != found.end():
                break
            found = match
        return found.group() if found is not None else None

    def begins_with(self, text: str) -> str | None:
        """The token with which a text begins, if it can end a turn."""
        found = self._ends.match(text)
        return found.group() if found is not None and found.group() != self._bos else None

    def quoted_in(self, conversation: Conversation) -> bool:
        """Whether a message quotes a special token, which must be read as text."""
        values = (conversation.messages, conversation.tools or (), conversation.documents or ())
        return any(self._quoted.search(text) for text in texts_of(values))

    def marking(self, conversation: Conversation, *, whole: bool) -> Conversation:
        """The conversation with marks around `whole` texts that quote a special token, or only around the tokens."""
        mark = self._around if whole else self._inside
        return Conversation(
            _mapped(conversation.messages, mark),
            _mapped(conversation.tools, mark),
            _mapped(conversation.documents, mark),
            conversation.variables,
        )

    def _around(self, text: str) -> str:
        if not self._quoted.search(text) or _THOUGHT.search(text):
            return self._inside(text)
        # Templates strip white space, also around the marks.
        core = text.strip()
        at = text.find(core)
        return f"{text[:at]}{_OPEN}{core}{_CLOSE}{text[at + len(core) :]}"

    def _inside(self, text: str) -> str:
        return self._quoted.sub(f"{_OPEN}\\g<0>{_CLOSE}", text)


@dataclass(frozen=True)
class Unmarked:
    """A text without marks, and the ranges that were marked."""

    text: str
    quoted: Sequence[tuple[int, int]]
    _removed: Sequence[int]

    def at(self, index: int) -> int:
        """The index of a character of the marked text."""
        return index - sum(mark < index for mark in self._removed)


def unmarked(text: str) -> Unmarked:
    """Remove the marks of `Specials.marking`."""
    kept: list[str] = []
    quoted: list[tuple[int, int]] = []
    removed: list[int] = []
    length, start = 0, None
    for index, character in enumerate(text) if _OPEN in text or _CLOSE in text else ():
        if character not in (_OPEN, _CLOSE):
            kept.append(character)
            length += 1
            continue
        removed.append(index)
        if character == _OPEN:
            start = length
        elif start is not None:
            quoted.append((start, length))
            start = None
    return Unmarked("".join(kept), quoted, removed) if removed else Unmarked(text, [], [])


def _one_of(tokens: Sequence[str]) -> re.Pattern[str]:
    longest_first = sorted({token for token in tokens if token}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _mapped(value: Any, change: Any) -> Any:
    """A nested value with all its texts changed, except roles and the names of things."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {name: inner if name in _NAMES else _mapped(inner, change) for name, inner in value.items()}
    return [_mapped(inner, change) for inner in value] if isinstance(value, list | tuple) else value


# Their values are compared by templates, not shown.
_NAMES = ("role", "type", "id", "tool_call_id")
