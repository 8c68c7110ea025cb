"""The turns of a conversation: which cannot be trained on, and their repair."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from shardyard.errors import UnusableRowError

Turn = Mapping[str, object]
# What a message may say besides its content.
_SAYS = ("tool_calls", "reasoning_content", "reasoning", "thinking", "function_call")
_SETTING = ("system", "developer")
# An empty system message is none, and a tool may return nothing.
_MAY_BE_EMPTY = ("system", "developer", "tool", "function", "ipython")


def check_turns(turns: Sequence[Turn]) -> None:
    """Check that there is an answer, and that nobody's turn is empty.

    Raises:
        UnusableRowError: there is no message, no answer, or a turn of the user or the assistant says nothing.
    """
    if not turns:
        raise UnusableRowError("the conversation has no messages")
    if empty := next((turn for turn in turns if _is_empty(turn)), None):
        raise UnusableRowError(f"a turn of the {empty.get('role')} is empty")
    if not any(turn.get("role") == "assistant" for turn in turns):
        raise UnusableRowError("the conversation has no turn of the assistant")


def repairs(turns: Sequence[Turn]) -> Iterator[list[Turn]]:
    """Repaired conversations, from the least changed one on.

    Empty turns and answers before the first question are removed, and consecutive turns of one role are joined; then
    also the system message becomes the beginning of the first question.
    """
    spoken = [turn for turn in turns if not _is_empty(turn)]
    system = [{**turn, "role": "system"} for turn in spoken if turn.get("role") in _SETTING]
    others = [turn for turn in spoken if turn.get("role") not in _SETTING]
    first = next((index for index, turn in enumerate(others) if turn.get("role") == "user"), len(others))
    joined = _joined(others[first:])
    if not joined:
        return
    said = [turn for turn in _joined(system) if _has_content(turn)]
    yield [*said, *joined]
    if said:
        yield _joined([{**said[0], "role": "user"}, *joined])


def _is_empty(turn: Turn) -> bool:
    if turn.get("role") in _MAY_BE_EMPTY:
        return False
    return not _has_content(turn) and not any(turn.get(name) for name in _SAYS)


def _has_content(turn: Turn) -> bool:
    content = turn.get("content")
    if isinstance(content, str):
        return bool(content.strip())
    if isinstance(content, Sequence):
        return any(not isinstance(part, Mapping) or part.get("type") != "text" or part.get("text") for part in content)
    return content is not None


def _joined(turns: Sequence[Turn]) -> list[Turn]:
    """The turns, with neighbours of one role in one turn; those with calls of tools or their results stay apart."""
    made: list[Turn] = []
    for _, group in groupby(enumerate(turns), key=_key):
        together = [turn for _, turn in group]
        made.append(together[0] if len(together) == 1 else _as_one(together))
    return made


def _key(numbered: tuple[int, Turn]) -> tuple[object, int]:
    index, turn = numbered
    alone = turn.get("role") not in ("user", "assistant", "system") or any(turn.get(name) for name in _SAYS)
    return turn.get("role"), index if alone else -1


def _as_one(turns: Sequence[Turn]) -> Turn:
    contents = [turn.get("content") for turn in turns]
    if all(isinstance(content, str) for content in contents):
        content: Any = "\n\n".join(map(str, contents))
    else:
        content = [part for content in contents for part in _parts(content)]
    return {**turns[0], "content": content}


def _parts(content: Any) -> Sequence[Any]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content
