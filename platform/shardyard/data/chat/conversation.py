"""Conversations as a row holds them, and in the form that a chat template reads."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from shardyard.data.tables.surrogates import loads
from shardyard.errors import UnusableRowError

# One turn: role and content, and whatever else the chat template reads (tool_calls, reasoning_content, name, …).
Message = Mapping[str, object]
Call = Mapping[str, object]


@dataclass(frozen=True)
class Conversation:
    """A conversation with what a chat template may read beside it.

    `variables` are further variables of the template, such as `enable_thinking`.
    """

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, object]] | None = None
    documents: Sequence[Mapping[str, object]] | None = None
    variables: Mapping[str, object] = field(default_factory=dict)

    def upto(self, count: int) -> Conversation:
        """The conversation with its first `count` messages."""
        return self.having(self.messages[:count])

    def having(self, messages: Sequence[Message]) -> Conversation:
        """The conversation with other messages."""
        return Conversation(messages, self.tools, self.documents, self.variables)


def conversation_of(example: Mapping[str, object]) -> Conversation:
    """The conversation of an example: `messages` and, if present, `tools`, `documents` and `chat_template_kwargs`.

    Keys whose value is null are left out, since `datasets` fills in the keys that only other rows have; only `content`
    and arguments of a tool may be null. Lists and mappings may be JSON text.

    Raises:
        UnusableRowError: a message has no role, its content is of no known form, or a field that holds JSON does not.
    """
    messages = _list(example["messages"], "messages")
    if not messages:
        raise UnusableRowError("a conversation has no messages")
    variables = _json(example.get("chat_template_kwargs"), "chat_template_kwargs")
    if not isinstance(variables or {}, Mapping):
        raise UnusableRowError("chat_template_kwargs is no mapping of names to values", f"{variables!r:.80}")
    return Conversation(
        [checked(message) for message in messages],
        [cast("Call", parsed(tool)) for tool in _list(example.get("tools"), "tools")] or None,
        _list(example.get("documents"), "documents") or None,
        _without_nulls(variables or {}),
    )


def checked(message: object) -> Message:
    """A message without null keys, whose role and content have a known form.

    Raises:
        UnusableRowError: they have not.
    """
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise UnusableRowError("a message needs a role and a content", f"got {message!r:.120}")
    kept = {name: value for name, value in message.items() if value is not None and name != "tool_calls"}
    content = kept.get("content")
    alone = isinstance(content, Mapping) and "type" in content and message["role"] != "tool"
    kept["content"] = _without_nulls([content] if alone else content)
    if message["role"] == "tool" and content is None:
        kept["content"] = ""  # a function may return nothing
    calls = _listed(message.get("tool_calls"), "tool_calls")
    if not calls and isinstance(kept.get("function_call"), Mapping):
        # What OpenAI's messages had before they had several calls.
        calls = [{"type": "function", "function": kept.pop("function_call")}]
    if calls:
        kept["tool_calls"] = [_call(call) for call in calls]
    content, role = kept["content"], kept["role"]
    says = content is not None or "tool_calls" in kept or any(kept.get(name) for name in REASONING)
    known = isinstance(content, str) or content is None or _is_parts(content) or role == "tool"
    if not says or not known:
        raise UnusableRowError("a message needs a role and a content", f"got {dict(message)!r:.120}")
    return kept


# The names of an answer's reasoning; transformers gives a template all of them.
REASONING = ("reasoning_content", "thinking", "reasoning")


def weight_of(message: Message) -> float:
    """The weight of a message's tokens in the loss: for an assistant its `weight`, 1 by default; 0 for everyone else.

    Raises:
        UnusableRowError: the weight is no number of 0 or more.
    """
    weight = message.get("weight", 1)
    if not isinstance(weight, int | float) or not math.isfinite(weight) or weight < 0:
        raise UnusableRowError("the weight of a message is a number of 0 or more", f"got {weight!r}")
    return float(weight) if message["role"] == "assistant" else 0.0


def function_of(call: Call) -> Call:
    """The name and arguments of a tool call, which are in `function` or beside its id."""
    inner = call.get("function")
    return inner if isinstance(inner, Mapping) else call


def calls_of(message: Message) -> Sequence[Call]:
    """The tool calls of a checked message."""
    return cast("Sequence[Call]", message.get("tool_calls", ()))


def with_function(call: Call, **changed: object) -> Call:
    """A tool call with other arguments."""
    inner = {**function_of(call), **changed}
    return {**call, "function": inner} if isinstance(call.get("function"), Mapping) else inner


def said_by(message: Message) -> str:
    """The content of a checked message as text: the texts of its parts joined."""
    content = message["content"]
    if isinstance(content, list | tuple):
        return "".join(str(part.get("text") or "") if isinstance(part, Mapping) else str(part) for part in content)
    return content if isinstance(content, str) else ""


def texts_of(value: object) -> Iterator[str]:
    """All texts in messages, tools or documents, without the keys of mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from texts_of(inner)
    elif isinstance(value, Sequence):
        for inner in value:
            yield from texts_of(inner)


def parsed(text: object) -> object:
    """The mapping that a JSON text holds; anything else unchanged."""
    if not isinstance(text, str):
        return text
    try:
        value = loads(text)
    except ValueError:
        return text
    return value if isinstance(value, dict) else text


def _call(call: object) -> Call:
    if not isinstance(call, Mapping) or not isinstance(function_of(call).get("name"), str):
        raise UnusableRowError("a tool call needs a function with a name", f"got {call!r:.120}")
    present = {name: value for name, value in call.items() if value is not None}
    if not isinstance(call.get("function"), Mapping):
        function = {name: present.pop(name) for name in ("name", "arguments") if name in present}
        present |= {"type": "function", "function": function}
    return with_function(present, arguments=parsed(function_of(call).get("arguments") or {}))


def _list(value: Any, name: str) -> list[Any]:
    return [_without_nulls(item) for item in _listed(value, name)]


def _listed(value: Any, name: str) -> list[Any]:
    value = _json(value, name)
    if isinstance(value, Mapping):
        return [value]
    if value is not None and (isinstance(value, str) or not isinstance(value, Sequence)):
        raise UnusableRowError(f"{name} is no list", f"{value!r:.80}")
    return list(value or ())


def _json(value: Any, name: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return loads(value) if value.strip() else None
    except ValueError as error:
        raise UnusableRowError(f"{name} is a text that is no JSON", f"{value!r:.80}") from error


def _is_parts(content: Any) -> bool:
    return isinstance(content, list | tuple) and all(isinstance(part, Mapping | str) for part in content)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            name: _without_nulls(inner)
            for name, inner in value.items()
            if inner is not None or (name == "content" and "role" in value)
        }
    return [_without_nulls(inner) for inner in value] if isinstance(value, list | tuple) else value
