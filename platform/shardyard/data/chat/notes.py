"""What people should know about a chat template before they train with it."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from shardyard.data.chat.conversation import Message
from shardyard.data.chat.dialect import ANSWER, USER
from shardyard.data.chat.encode import ChatEncoder
from shardyard.data.chat.setup import add_chat_template
from shardyard.errors import UnusableRowError
from shardyard.recipe.schema import Chat

_THOUGHT: Message = {**ANSWER, "reasoning_content": "Mnopq"}


@dataclass(frozen=True)
class ChatNotes:
    """Which answers are trained, why, and what else training does that a template does not say."""

    trained: str
    why: str
    remarks: tuple[str, ...]

    def in_words(self) -> str:
        """`all: answers of the assistant, …; the chat template …`."""
        return f"{self.trained}: {'; '.join([self.why, *self.remarks])}"


def prepare_chat(tokenizer: PreTrainedTokenizerFast, chat: Chat, *, all_answers: bool = True) -> ChatNotes:
    """Give the tokenizer the template of a recipe, and say how it trains.

    Args:
        all_answers: whether rows hold conversations rather than pairs of answers.

    Raises:
        DataError: the template cannot be read, or nothing can end an answer.
    """
    completed = add_chat_template(tokenizer, chat.template, chat.template_kwargs)
    encoder = ChatEncoder(tokenizer, chat.loss_on)
    remarks = list(_remarks(encoder, completed=completed))
    if encoder.loss_on() != "last" and _splits(encoder):
        remarks.append(
            "the chat template shows an answer otherwise once the conversation goes on; each such answer is trained in "
            "a row that ends with it, as the model has to write it"
            if all_answers
            else "the chat template shows an answer otherwise once the conversation goes on; where several answers "
            "follow the prompt of a pair, each is compared in a sequence that ends with it"
        )
    return ChatNotes(encoder.loss_on(), _why(encoder, chat), tuple(remarks))


def _why(encoder: ChatEncoder, chat: Chat) -> str:
    if chat.loss_on is not None:
        return "chat.loss_on"
    if encoder.loss_on() == "marked":
        return "what the template marks with {% generation %}; chat.loss_on: all finds the answers itself"
    return "answers of the assistant, from the prompt to the token that ends the turn"


def _remarks(encoder: ChatEncoder, *, completed: bool) -> list[str]:
    found = []
    dialect = encoder.dialect(None)
    if completed:
        found.append(
            "the chat template writes no header for the model to continue; the exported template does, so that the "
            "model is asked as it was trained"
        )
    if dialect.end_kind == "added" and encoder.loss_on() != "marked":
        found.append(
            f"the chat template ends answers with no token of the tokenizer; {encoder.eos!r} is trained after each "
            "answer, so that generation ends. If the template has an end, add it to the tokenizer as a special token"
        )
    if encoder.loss_on() == "marked" and dialect.tail is not None and not encoder.marks_end():
        found.append(
            "the marks end before the token that ends a turn, so the model does not learn to stop; "
            "chat.loss_on: all trains it"
        )
    if dialect.end_kind == "next_turn":
        found.append(f"only the next turn ends an answer: the model learns to write {dialect.next_user!r}")
    if "strftime_now" in encoder.source:
        found.append(
            "the chat template writes the date of the day, so rows differ from day to day; a variable may fix it, such "
            'as chat.template_kwargs: {date_string: "1 January 2026"}'
        )
    return found


def _splits(encoder: ChatEncoder) -> bool:
    """Whether a conversation of two turns makes two rows."""
    for answer in (ANSWER, _THOUGHT):
        try:
            if len(encoder.rows({"messages": [USER, answer, USER, answer]})) > 1:
                return True
        except UnusableRowError:
            continue
    return False
