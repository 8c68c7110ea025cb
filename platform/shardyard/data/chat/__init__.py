"""Conversations as tokens in a chat template, and which of them are trained."""

from shardyard.data.chat.encode import ChatEncoder, LossOn, TextRow, chat_prompt, encode_conversation
from shardyard.data.chat.notes import ChatNotes, prepare_chat
from shardyard.data.chat.setup import add_chat_template
from shardyard.data.chat.template import PLAIN_TEMPLATE
from shardyard.data.chat.tokens import Encoded, Span

__all__ = [
    "PLAIN_TEMPLATE",
    "ChatEncoder",
    "ChatNotes",
    "Encoded",
    "LossOn",
    "Span",
    "TextRow",
    "add_chat_template",
    "chat_prompt",
    "encode_conversation",
    "prepare_chat",
]
