"""Tokens that end an answer: those with which the chat template closes a turn."""

from __future__ import annotations

from collections.abc import Sequence

import jinja2
from transformers import PreTrainedTokenizerFast

from shardyard.data.chat import ChatEncoder

# A word that no template writes by itself, so that its place in the rendered text is the answer's.
_ANSWER = "Zyxwv"
_USER, _ASSISTANT = {"role": "user", "content": "Qponm"}, {"role": "assistant", "content": _ANSWER}


def answer_ends(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Ids of the tokens that follow an answer in the chat template; empty if none of the tokenizer's tokens does.

    A template may end the last answer with another token than an earlier one (gpt-oss), or with the token that begins
    the next turn (GLM), so a conversation that ends with the answer and one that goes on are both rendered. A call of a
    tool may end with a token of its own.
    """
    if tokenizer.chat_template is None:
        return []
    found = [_end(tokenizer, turns) for turns in ([_USER, _ASSISTANT], [_USER, _ASSISTANT, _USER])]
    found.append(ChatEncoder(tokenizer).call_end())
    return list(dict.fromkeys(token for token in found if token is not None))


def _end(tokenizer: PreTrainedTokenizerFast, turns: Sequence[dict[str, str]]) -> int | None:
    """The special token right after the answer, or after white space."""
    try:
        text = str(tokenizer.apply_chat_template(list(turns), tokenize=False))
    except (jinja2.TemplateError, TypeError, ValueError):
        return None  # A template may refuse this conversation; training reports that of its own rows.
    _, answered, rest = text.rpartition(_ANSWER)
    if not answered:
        return None
    rest = rest.lstrip()
    marks = {str(token): id for id, token in tokenizer.added_tokens_decoder.items()}
    marks |= dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    starts = [mark for mark in marks if mark and rest.startswith(mark)]
    return marks[max(starts, key=len)] if starts else None
