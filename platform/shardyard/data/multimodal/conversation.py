"""Conversations with pictures: from the columns of an example to messages with parts, and to their text.

A part is {type: text, text: …} or {type: image}; the pictures themselves are a list beside the messages, in the same
order.
"""

from __future__ import annotations

import base64
import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict, cast

from torch import Tensor

from shardyard.data.chat import ChatEncoder, ChatNotes, LossOn, TextRow, prepare_chat
from shardyard.data.multimodal.encode import read, read_suffix, takes_suffix
from shardyard.errors import DataError, UnusableRowError
from shardyard.recipe.schema import Chat

# Stands for a picture in a text, as in the data of LLaVA and LLaMA-Factory.
MARK = "<image>"
# Types of parts that are texts or pictures, and the keys that hold a picture, for transformers, Qwen and OpenAI.
_TEXTS = ("text", "input_text", "output_text")
_PICTURES, _PICTURE_KEYS = ("image", "image_url", "input_image"), ("image", "image_url", "url", "path")


class Part(TypedDict, total=False):
    """A part of a message."""

    type: str
    text: str


# A message, with all its keys; its content is a list of parts, null, or what a tool returns.
Message = dict[str, object]


def conversation(example: Mapping[str, object]) -> tuple[list[Message], list[object]]:
    """Messages and pictures of an example with `messages`, or with `prompt` and `response`; and `images` or `image`.

    Pictures stand where a text has `<image>` or a part of type image; where nothing says so, before the first message
    of the user.

    Raises:
        UnusableRowError: a message is malformed, or the numbers of pictures and of their places differ.
    """
    beside = example.get("images")
    pictures: list[object] = list(beside) if isinstance(beside, Iterable) else []
    if example.get("image") is not None:
        pictures.append(example["image"])
    within: list[object] = []
    messages: list[Message]
    told = example.get("messages")
    if isinstance(told, Iterable):
        messages = [_message(message, within) for message in told]
    else:
        messages = [
            {"role": "user", "content": _parts(example["prompt"], within)},
            {"role": "assistant", "content": [{"type": "text", "text": str(example["response"])}]},
        ]
    pictures = within or pictures
    places = num_places(messages)
    if places == 0 and pictures:
        first = next((message for message in messages if message["role"] == "user"), None)
        if first is None:
            raise UnusableRowError("a conversation with pictures has no message of the user")
        first["content"] = [*({"type": "image"} for _ in pictures), *_parts_of(first)]
        places = len(pictures)
    if places != len(pictures):
        raise UnusableRowError(
            "a conversation has more or fewer pictures than places for them", f"{len(pictures)} and {places}"
        )
    return messages, pictures


def num_places(messages: Sequence[Message]) -> int:
    """The number of places of pictures in messages."""
    return sum(part["type"] == "image" for message in messages for part in _parts_of(message))


def _parts_of(message: Message) -> list[Part]:
    content = message["content"]
    return cast("list[Part]", content) if isinstance(content, list) else []


def _message(message: Any, within: list[object]) -> Message:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise UnusableRowError("a message needs a role and a content", f"got {message!r:.80}")
    content = message.get("content")
    as_it_is = content is None or (message["role"] == "tool" and isinstance(content, Mapping))
    return {**message, "content": content if as_it_is else _parts(content, within)}


def _parts(content: Any, within: list[object]) -> list[Part]:
    """The parts of a message; pictures that the parts hold themselves are added to `within`."""
    if isinstance(content, str):
        return _marked(content)
    if not isinstance(content, Sequence):
        raise UnusableRowError("the content of a message is a text or a list of parts", f"not {content!r:.80}")
    parts: list[Part] = []
    for part in content:
        if isinstance(part, str):
            parts += _marked(part)
            continue
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in _TEXTS and isinstance(part.get("text"), str):
            parts.append({"type": "text", "text": part["text"]})
        elif kind in _PICTURES:
            parts.append({"type": "image"})
            picture = next((part[name] for name in _PICTURE_KEYS if part.get(name) is not None), None)
            if picture is not None:
                within.append(_opened(picture))
        else:
            raise UnusableRowError("a part of a message is of type text or image here", f"not {kind!r}")
    return parts


def _opened(picture: Any) -> object:
    """A picture of OpenAI's messages, which is a URL that holds the picture or names a local file."""
    if isinstance(picture, Mapping) and "url" in picture:
        picture = picture["url"]
    if not isinstance(picture, str):
        return picture
    head, comma, content = picture.partition(",")
    if head.startswith("data:") and comma:
        try:
            return base64.b64decode(content, validate=True)
        except ValueError as error:
            raise UnusableRowError("a picture is a data URL that is not base64", picture[:40]) from error
    if picture.startswith(("http://", "https://")):
        raise UnusableRowError("a picture is on the web; download it and name the file", picture[:120])
    return picture.removeprefix("file://")


def _marked(text: str) -> list[Part]:
    parts: list[Part] = []
    for index, piece in enumerate(text.split(MARK)):
        if index:
            parts.append({"type": "image"})
        if piece:
            parts.append({"type": "text", "text": piece})
    return parts


def text_of(message: Message) -> str:
    """The texts of a message."""
    return "".join(part["text"] for part in _parts_of(message) if part["type"] == "text")


def prepare_processor(processor: Any, chat: Chat) -> ChatNotes | None:
    """Give a processor the chat template of a recipe, and say how it trains; None for one without a template.

    Raises:
        DataError: the template cannot be read, nothing can end an answer, or the processor reads no conversations.
    """
    if takes_suffix(processor):
        if chat != Chat():
            raise DataError("PaliGemma reads a question and an answer, no conversations; remove the section chat.")
        return None
    tokenizer = _tokenizer_of(processor)
    notes = prepare_chat(tokenizer, chat)
    processor.chat_template = tokenizer.chat_template
    return notes


def chat_of(processor: Any, loss_on: LossOn | None = None) -> ChatEncoder:
    """The encoder of conversations in a processor's chat template.

    Raises:
        DataError: nothing can end an answer, or the template has no marks to train by.
    """
    return ChatEncoder(_tokenizer_of(processor), loss_on)


def _tokenizer_of(processor: Any) -> Any:
    tokenizer = copy.deepcopy(processor.tokenizer)
    tokenizer.chat_template = processor.chat_template
    return tokenizer


def written(chat: ChatEncoder, example: Mapping[str, object], messages: Sequence[Message]) -> list[TextRow]:
    """The rows of an example as text, with the example's `tools`, `documents` and variables; see `ChatEncoder.rows`.

    Raises:
        UnusableRowError: a message is malformed, or the template refuses or does not show it.
    """
    beside = {name: example[name] for name in ("tools", "documents", "chat_template_kwargs") if name in example}
    return chat.texts({**beside, "messages": messages})


def prompt_inputs(processor: Any, prompt: str, pictures: Sequence[Any]) -> dict[str, Tensor]:
    """The inputs with which a model answers a prompt about pictures, by name.

    Raises:
        DataError: the processor or its chat template refuses the prompt.
    """
    messages, _ = conversation({"images": list(pictures), "prompt": prompt, "response": ""})
    if takes_suffix(processor):
        return read_suffix(processor, text_of(messages[0]), None, pictures).tensors
    asked = TextRow(chat_of(processor).prompt(messages[:1]), (), 1)
    return read(processor, asked, pictures, placeholder=processor.image_token).tensors


def picture_answer_ends(processor: Any) -> list[int]:
    """Ids of the tokens that end an answer in the processor's chat template, besides the end-of-text token."""
    if takes_suffix(processor):
        return []
    chat = chat_of(processor)
    dialect, call = chat.dialect(None), chat.call_end()
    end = dialect.usual_end or (dialect.next_user or "").lstrip()
    ends = [int(processor.tokenizer.convert_tokens_to_ids(end))] if end else []
    return list(dict.fromkeys([*ends, *([call] if call is not None else [])]))
