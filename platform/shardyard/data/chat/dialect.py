"""What a chat template expects and writes, found out by rendering made-up conversations."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from shardyard.data.chat.conversation import Call, Conversation, Message, calls_of, function_of, with_function
from shardyard.data.chat.special import Specials
from shardyard.data.chat.template import Template, common_prefix
from shardyard.errors import UnusableRowError

# Words that no template writes by itself, so that their place in a text is that of the message.
ASKED, SAID, OTHER, _TOLD = "Qponm", "Zyxwv", "Kjihg", "Fedcb"
USER: Message = {"role": "user", "content": ASKED}
ANSWER: Message = {"role": "assistant", "content": SAID}
OTHER_ANSWER: Message = {"role": "assistant", "content": OTHER}
_NEXT: Message = {"role": "user", "content": OTHER}
_CALL = {"id": "call00001", "type": "function", "function": {"name": "probe", "arguments": {"word": SAID}}}
CALLING: Message = {"role": "assistant", "content": None, "tool_calls": [_CALL]}
_RESULT: Message = {"role": "tool", "name": "probe", "tool_call_id": "call00001", "content": OTHER}
_PARTS = [{"type": "text", "text": SAID}, {"type": "text", "text": OTHER}]
_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")

EndKind = Literal["token", "next_turn", "added"]


@dataclass(frozen=True)
class Dialect:
    """How a template wants messages, and how it writes an answer.

    arguments: whether a tool call has its arguments as a mapping or as JSON text; None if calls are not shown.
    null_content: the content of an answer that only calls tools: None or "".
    parts: roles whose content may be a list of several parts; only_parts: roles whose content must be a list.
    objects: whether it writes a result of a tool that is no text as JSON; otherwise it is given JSON text.
    shown: other role → whether its messages are shown; None if they are refused.
    header: what the template writes for the model to continue; "" if it cannot, None if it refuses a simple question.
    marks: whether it marks what the model generates.
    tail: the text after an answer at the end of a conversation; None if the template refuses a simple question.
    usual_end: the token that ends an answer, next_user and next_tool the text after one up to the token with which
        the next turn begins, if only that ends it.
    """

    arguments: Literal["mapping", "text"] | None = None
    null_content: str | None = None
    parts: frozenset[str] = frozenset()
    only_parts: frozenset[str] = frozenset()
    objects: bool = False
    shown: Mapping[str, bool | None] = field(default_factory=dict)
    header: str | None = ""
    marks: bool = False
    tail: str | None = None
    usual_end: str | None = None
    next_user: str | None = None
    next_tool: str | None = None

    @property
    def end_kind(self) -> EndKind:
        """What ends an answer: a token of the template, the next turn's first token, or an end-of-text token that
        training adds."""
        if self.usual_end is not None:
            return "token"
        return "next_turn" if self.next_user is not None else "added"

    def spoken(self, conversation: Conversation) -> Conversation:
        """The conversation in the form that the template reads.

        Raises:
            UnusableRowError: the template does not show a part of the conversation.
        """
        return conversation.having([self._message(message) for message in conversation.messages])

    def _message(self, message: Message) -> Message:
        if message["role"] == "developer" and self._has_system_instead():
            message = {**message, "role": "system"}
        if self.shown.get(str(message["role"])) is False and message["content"]:
            raise UnusableRowError(f"the chat template does not show messages of the role {message['role']!r}")
        said: dict[str, object] = {**message, "content": self._content(message)}
        if "tool_calls" not in message:
            return said
        if self.arguments is None and message["role"] == "assistant":
            raise UnusableRowError(
                "the chat template does not show tool calls", "an answer that calls a tool would be an empty one"
            )
        if self.arguments == "text":
            said["tool_calls"] = [_as_text(call) for call in calls_of(message)]
        return said

    def knowing(self, template: Template, roles: Iterable[str]) -> Dialect:
        """The dialect that also knows whether the template shows messages of these roles."""
        new = {role for role in roles if role not in (*self.shown, "user", "assistant")}
        return replace(self, shown={**self.shown, **{role: is_shown(template, role) for role in new}}) if new else self

    def _has_system_instead(self) -> bool:
        """Whether instructions of a developer, as newer models call them, are those of the system here."""
        return not self.shown.get("developer") and bool(self.shown.get("system"))

    def _content(self, message: Message) -> object:
        content, role = message["content"], message["role"]
        if role == "tool" and not isinstance(content, str) and not _is_parts(content):
            return content if self.objects else json.dumps(content, ensure_ascii=False)
        if not content:
            # Some templates show calls only beside a null content, and others none beside it.
            content = self.null_content if "tool_calls" in message else ""
        if isinstance(content, list) and role not in self.parts:
            # As vLLM joins them for templates that only read texts.
            content = "\n".join(_text(part, role) for part in content)
        if isinstance(content, str) and role in self.only_parts:
            return [{"type": "text", "text": content}]
        return content


def dialect_of(template: Template, specials: Specials, tools: object = None) -> Dialect:
    """The dialect of a tokenizer's template, for conversations with these tools."""
    arguments, null_content = _calls(template)
    parts, only_parts = _parts(template, arguments)
    text = template.accepts([_said(USER, only_parts), _said(ANSWER, only_parts)])
    tail = text.rpartition(SAID)[2] if text is not None and SAID in text else None
    usual = specials.usual_end(tail) if tail is not None else None
    return Dialect(
        arguments,
        null_content,
        parts,
        only_parts,
        _shows_objects(template, arguments, null_content),
        {role: is_shown(template, role, arguments, null_content) for role in OTHER_ROLES},
        _header(template, only_parts),
        _MARKS.search(template.source(tools)) is not None,
        tail,
        usual,
        None if usual is not None else _next_user(template, specials, only_parts),
        _next_tool(template, specials, arguments, null_content),
    )


def _said(message: Message, only_parts: frozenset[str]) -> Message:
    if message["role"] not in only_parts:
        return message
    return {**message, "content": [{"type": "text", "text": message["content"]}]}


def _header(template: Template, only_parts: frozenset[str]) -> str | None:
    asked = [_said(USER, only_parts)]
    plain, answering = template.accepts(asked), template.accepts(asked, answering=True)
    if plain is None or answering is None:
        return None
    return answering[len(common_prefix(plain, answering)) :]


def _calls(template: Template) -> tuple[Literal["mapping", "text"] | None, str | None]:
    """The first form of a call that the template shows as JSON or in a syntax of its own, not as Python prints it."""
    forms: Sequence[Literal["mapping", "text"]] = ("mapping", "text")
    for content in (None, ""):
        for form in forms:
            text = template.accepts([USER, _calling(form, content)])
            if text is None or SAID not in text or f"'{SAID}'}}" in text.replace(" ", "") or "None" in text:
                continue
            if f'\\"{SAID}' in text:
                continue  # JSON text that was encoded again
            return form, content
    return None, ""


def _calling(form: str, content: str | None) -> Message:
    return {"role": "assistant", "content": content, "tool_calls": [_CALL if form == "mapping" else _as_text(_CALL)]}


def _as_text(call: Call) -> Call:
    arguments = function_of(call).get("arguments", {})
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return with_function(call, arguments=text)


def _parts(template: Template, arguments: str | None) -> tuple[frozenset[str], frozenset[str]]:
    """Roles whose content may be, and roles whose content must be a list of parts."""
    before: dict[str, list[Message]] = {"user": [], "assistant": [USER], "system": []}
    if arguments is not None:
        before["tool"] = [USER, _calling(arguments, "")]
    may, must = set(), set()
    for role, earlier in before.items():
        after = [USER] if role == "system" else []
        extra = {"name": "probe", "tool_call_id": "call00001"} if role == "tool" else {}
        parts, plain = (
            _shown(template, earlier, {"role": role, "content": content, **extra}, after) for content in (_PARTS, SAID)
        )
        if SAID not in parts or re.search(r"['\"]type['\"]", parts):
            continue
        if OTHER in parts:
            may.add(role)
        if SAID not in plain:
            must.add(role)
    return frozenset(may), frozenset(must)


def _shows_objects(template: Template, arguments: str | None, null_content: str | None) -> bool:
    if arguments is None:
        return False
    text = _shown(template, [USER, _calling(arguments, null_content)], {**_RESULT, "content": {"word": _TOLD}}, [])
    return f'"{_TOLD}"' in text


def _is_parts(content: object) -> bool:
    parts = content if isinstance(content, list | tuple) else [None]
    return all(isinstance(part, str) or (isinstance(part, Mapping) and "type" in part) for part in parts)


# Roles besides user and assistant that conversations usually have.
OTHER_ROLES = ("system", "developer", "tool")


def is_shown(template: Template, role: str, arguments: str | None = None, content: str | None = None) -> bool | None:
    """Whether a template shows the messages of a role; None if it refuses them."""
    calling = [USER, _calling(arguments, content)] if arguments is not None else [USER, ANSWER]
    before, after = (calling, [OTHER_ANSWER]) if role == "tool" else ([], [USER])
    message = {**(_RESULT if role == "tool" else {}), "role": role}
    texts = [
        _shown(template, before, {**message, "content": told}, after)
        for told in (_TOLD, [{"type": "text", "text": _TOLD}])
    ]
    return any(_TOLD in text for text in texts) if any(texts) else None


def _shown(template: Template, before: list[Message], message: Message, after: list[Message]) -> str:
    """The text of a message among questions that are texts or parts, whichever the template accepts; "" if neither."""
    for content in (ASKED, [{"type": "text", "text": ASKED}]):
        turns = [{**turn, "content": content} if turn is USER else turn for turn in before]
        later = [{**turn, "content": content} for turn in after]
        text = template.accepts([*turns, message, *later])
        if text is not None:
            return text
    return ""


def _text(part: object, role: object) -> str:
    text = part.get("text") if isinstance(part, Mapping) else part
    if isinstance(text, str):
        return text
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise UnusableRowError("the chat template shows only text", f"a message of {role} has a part of type {kind!r}")


def _next_user(template: Template, specials: Specials, only_parts: frozenset[str]) -> str | None:
    text = template.accepts([_said(message, only_parts) for message in (USER, ANSWER, _NEXT)])
    return _upto_token(text.partition(SAID)[2], specials) if text is not None else None


def _next_tool(template: Template, specials: Specials, arguments: str | None, content: str | None) -> str | None:
    if arguments is None:
        return None
    turns = [USER, _calling(arguments, content)]
    text, longer = template.accepts(turns), template.accepts([*turns, _RESULT])
    if text is None or longer is None or not longer.startswith(text.rstrip()):
        return None
    return _upto_token(longer[len(text.rstrip()) :], specials)


def _upto_token(text: str, specials: Specials) -> str | None:
    body = text.lstrip()
    token = specials.begins_with(body)
    return text[: len(text) - len(body)] + token if token is not None else None
