"""From the columns of a layout (`recipe/layouts.py`) to conversations, pairs of answers, and pictures with text.

A conversation is `{messages: [{role, content, …}, …], tools: […]}`, `tools` only if there are any. A pair is `{prompt,
chosen, rejected}`: texts as they are, or lists of messages. Keys of a message beyond role and content are kept.
Pictures are `image` or the list `images`, beside `messages`, or `prompt` and `response`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shardyard.data.tables.surrogates import loads
from shardyard.errors import UnusableRowError

Message = dict[str, object]
_ROLES = {
    **{role: role for role in ("system", "developer", "user", "assistant", "tool")},
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "ai": "assistant",
    "model": "assistant",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "function-response": "tool",
}
_CALLS = ("function_call", "function-call")
# Other names of a message's role and content, and the keys of a turn that holds both a question and its answer.
_SPEAKER, _SAYING = ("from", "speaker", "author"), ("value", "text", "utterance")
_ASKED, _ANSWERED = ("human", "user", "question", "prompt"), ("assistant", "gpt", "bot", "answer", "response")
# Transcripts of HH (Bai et al. 2022): "\n\nHuman: …\n\nAssistant: …".
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def read_layout(layout: str, values: Mapping[str, object]) -> dict[str, object]:
    """The example of one row.

    Args:
        layout: the name of a layout.
        values: role → value; roles without a column are absent.

    Raises:
        UnusableRowError: a value is not what the layout has there.
    """
    return _READERS[layout](values)


def _messages(values: Mapping[str, object]) -> dict[str, object]:
    return _conversation(_after_system(values, _turns(values["messages"], "messages")), values)


def _sharegpt(values: Mapping[str, object]) -> dict[str, object]:
    return _conversation(_after_system(values, _turns(values["conversations"], "conversations")), values)


def _alpaca(values: Mapping[str, object]) -> dict[str, object]:
    """The question is the instruction, followed by the input on the next line."""
    question = "\n".join(filter(None, (_text(values.get(role), role) for role in ("instruction", "input"))))
    messages = _system(values)
    history: Any = values.get("history")
    for pair in history or ():
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise UnusableRowError("history must hold pairs of a question and an answer", f"{pair!r:.60}")
        messages += [_user(_text(pair[0], "history")), _assistant(_text(pair[1], "history"))]
    output = _text(values["output"], "output")
    return _conversation([*messages, _user(question), _assistant(output)], values)


def _prompt_completion(values: Mapping[str, object]) -> dict[str, object]:
    """Only the completion is trained, also where the prompt is a conversation."""
    prompt = _said(values["prompt"], "prompt", _user)
    completion = _said(values["completion"], "completion", _assistant)
    return _conversation([*_after_system(values, _not_trained(prompt)), *completion], values)


def _prompt_pair(values: Mapping[str, object]) -> dict[str, object]:
    """Texts stay texts, for rows of exactly one question and two answers."""
    roles = ("prompt", "chosen", "rejected")
    plain = all(isinstance(values[role], str) and not _is_transcript(values[role]) for role in roles)
    if plain and not any(map(values.get, ("system", "tools"))):
        return {role: values[role] for role in roles}
    prompt = _after_system(values, _said(values["prompt"], "prompt", _user))
    answers = {role: _said(values[role], role, _assistant) for role in ("chosen", "rejected")}
    for role, turns in answers.items():
        # UltraFeedback repeats the prompt in each answer.
        spoken = [turn for turn in prompt if turn["role"] != "system"]
        rest = [turn for turn in turns if turn["role"] != "system"] if turns[0]["role"] == "system" else turns
        answers[role] = rest[len(spoken) :] if spoken and rest[: len(spoken)] == spoken else turns
    return _pair(prompt, answers["chosen"], answers["rejected"], values)


def _implicit_pair(values: Mapping[str, object]) -> dict[str, object]:
    """The prompt is what both conversations begin with."""
    chosen, rejected = (_said(values[role], role, _assistant) for role in ("chosen", "rejected"))
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    return _pair(_after_system(values, chosen[:shared]), chosen[shared:], rejected[shared:], values)


def _pair(
    prompt: list[Message], chosen: list[Message], rejected: list[Message], values: Mapping[str, object]
) -> dict[str, object]:
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        if not any(turn["role"] == "assistant" for turn in turns):
            raise UnusableRowError(f"{name} has no answer of the assistant after the prompt")
    if not prompt:
        raise UnusableRowError("chosen and rejected share no prompt")
    return {"prompt": _not_trained(prompt), "chosen": chosen, "rejected": rejected, **_tools(values)}


def _conversation(messages: list[Message], values: Mapping[str, object]) -> dict[str, object]:
    return {"messages": messages, **_tools(values)}


def _asked_about(values: Mapping[str, object]) -> dict[str, object]:
    return {**values, "prompt": _text(values["prompt"], "prompt"), "response": _text(values["response"], "response")}


def _told_about(values: Mapping[str, object]) -> dict[str, object]:
    """`images` is a list, also where the column holds a single one."""
    images = values["images"]
    pictures = list(images) if isinstance(images, Sequence) and not isinstance(images, bytes | str) else [images]
    role = "messages" if "messages" in values else "conversations"
    return {"images": pictures, **_conversation(_after_system(values, _turns(values[role], role)), values)}


def _said(value: object, role: str, speaker: Callable[[str], Message]) -> list[Message]:
    """Turns, from a list of messages, a transcript, or the text of one speaker."""
    if not isinstance(value, str):
        return _turns(value, role) if value is not None else [speaker(_text(value, role))]
    return _transcript(value) if _is_transcript(value) else [speaker(value)]


def _is_transcript(text: object) -> bool:
    if not isinstance(text, str) or not text.lstrip("\n").startswith(("Human:", "Assistant:")):
        return False
    # Some copies of HH are stripped; a single question may begin with these words, too.
    return text.startswith("\n\n") or len({mark[1] for mark in _TURN.finditer(text)}) == 2


def _transcript(text: str) -> list[Message]:
    """The turns of a transcript; a text without a speaker before the first one belongs to nobody and is not there."""
    marks = list(_TURN.finditer(text))
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    speakers = {"Human": _user, "Assistant": _assistant}
    return [speakers[mark[1]](text[mark.end() : end].strip()) for mark, end in zip(marks, ends, strict=True)]


def _turns(value: Any, role: str) -> list[Message]:
    if isinstance(value, str):
        # A table without nested columns, such as CSV, keeps conversations as JSON text.
        value = _parsed(value, role)
    if isinstance(value, Mapping) and isinstance(value.get("role", value.get("from")), str):
        value = [value]
    if isinstance(value, Mapping):
        # A list of structs is stored as a struct of lists by older versions of `datasets`.
        value = _transposed(value, role)
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise UnusableRowError(f"{role} is no list of messages", f"{value!r:.60}")
    if all(isinstance(said, str) for said in value):
        # UltraChat and DailyDialog: the user and the assistant speak in turn.
        return [(_assistant if at % 2 else _user)(said) for at, said in enumerate(value)]
    return [_turn(message, role) for both in value for message in _apart(both)]


def _apart(message: Any) -> Sequence[Any]:
    """The question and the answer of a turn that holds both under their speakers' names; any other message alone."""
    if not isinstance(message, Mapping) or any(name in message for name in ("role", *_SPEAKER)):
        return [message]
    asked = next((name for name in _ASKED if name in message), None)
    answered = next((name for name in _ANSWERED if name in message), None)
    if asked is None or answered is None:
        return [message]
    return [{"role": "user", "content": message[asked]}, {"role": "assistant", "content": message[answered]}]


def _transposed(value: Mapping[str, object], role: str) -> list[Message]:
    lists = {name: column for name, column in value.items() if isinstance(column, Sequence)}
    lengths = {len(column) for column in lists.values()}
    if len(lists) < len(value) or len(lengths) != 1:
        raise UnusableRowError(f"{role} is no list of messages", f"{value!r:.60}")
    return [{name: column[at] for name, column in lists.items()} for at in range(lengths.pop())]


def _turn(message: Any, role: str) -> Message:
    if not isinstance(message, Mapping):
        raise UnusableRowError(f"{role} must hold messages with role and content", f"{message!r:.60}")
    turn = dict(message)
    speaker = next((name for name in _SPEAKER if name in turn), None)
    if "role" not in turn and speaker is not None:
        turn = {"role": turn.pop(speaker), **turn}
    saying = next((name for name in _SAYING if name in turn), None)
    if "content" not in turn and saying is not None:
        turn = {"content": turn.pop(saying), **turn}
    name = turn.get("role")
    if not isinstance(name, str):
        raise UnusableRowError(f"a message of {role} has no role", f"{message!r:.60}")
    if name in _CALLS:
        return _call(turn, role)
    return {**turn, "role": _ROLES.get(name.strip().lower(), name)}


def _call(turn: Message, role: str) -> Message:
    """A turn of ShareGPT that calls functions: JSON of one call or of several, each with name and arguments."""
    content = turn.get("content")
    calls = _parsed(content, role) if isinstance(content, str) else content
    made = [{"type": "function", "function": call} for call in (calls if isinstance(calls, list) else [calls])]
    if not all(isinstance(call["function"], Mapping) and "name" in call["function"] for call in made):
        raise UnusableRowError(f"a call of a function in {role} has no name", f"{content!r:.60}")
    return {**turn, "role": "assistant", "content": "", "tool_calls": made}


def _system(values: Mapping[str, object]) -> list[Message]:
    text = _text(values.get("system"), "system")
    return [{"role": "system", "content": text}] if text else []


def _after_system(values: Mapping[str, object], turns: list[Message]) -> list[Message]:
    """The turns after the system message of a column, unless they begin with one of their own."""
    own = turns and turns[0]["role"] in ("system", "developer")
    return turns if own else [*_system(values), *turns]


# Further values that a chat template reads.
_BESIDE = ("documents", "chat_template_kwargs")


def _tools(values: Mapping[str, object]) -> dict[str, object]:
    tools = values.get("tools")
    if isinstance(tools, str):
        tools = _parsed(tools, "tools") if tools.strip() else None
    others = {name: value for name in _BESIDE if (value := values.get(name))}
    return {"tools": tools, **others} if tools else others


def _parsed(text: str, role: str) -> Any:
    try:
        return loads(text)
    except ValueError as error:
        raise UnusableRowError(f"{role} is a text that is no JSON", f"{text!r:.60}") from error


def _text(value: Any, role: str) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, int | float):
        return json.dumps(value)
    raise UnusableRowError(f"{role} is no text", f"{value!r:.60}")


def _not_trained(messages: Sequence[Message]) -> list[Message]:
    """The messages with weight 0 for those of the assistant."""
    return [{**turn, "weight": 0} if turn["role"] == "assistant" else dict(turn) for turn in messages]


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


_READERS: Mapping[str, Callable[[Mapping[str, object]], dict[str, object]]] = {
    "messages": _messages,
    "ShareGPT": _sharegpt,
    "Alpaca": _alpaca,
    "prompt–completion": _prompt_completion,
    "prompt with two answers": _prompt_pair,
    "two conversations": _implicit_pair,
    "a picture, prompt and response": _asked_about,
    "pictures, prompt and response": _asked_about,
    "pictures and messages": _told_about,
    "pictures and ShareGPT": _told_about,
    "messages that hold pictures": _messages,
}
