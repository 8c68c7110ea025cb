"""A conversation with pictures as the tensors that the model's own processor makes of it, and what is learned of it.

T: tokens of the row
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from shardyard.data.chat import Span, TextRow
from shardyard.errors import DataError, UnusableRowError

# The processor that takes question and answer apart.
_PREFIX_SUFFIX = "PaliGemmaProcessor"


@dataclass(frozen=True)
class Read:
    """The output of a processor for one text, by name, and the weight of each of its tokens in the loss [T]."""

    tensors: dict[str, Tensor]
    weights: list[float]


@dataclass
class _Calls:
    """Texts that a processor passed to its tokenizer, with the encodings."""

    texts: list[str] = field(default_factory=list)
    encodings: list[Any] = field(default_factory=list)


class _Recorder:
    """A tokenizer that records its calls: a processor passes it the text with all placeholders in place."""

    def __init__(self, tokenizer: Any, calls: _Calls) -> None:
        self._tokenizer, self._calls = tokenizer, calls

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __len__(self) -> int:
        return len(self._tokenizer)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        found = self._tokenizer(*args, **kwargs)
        text = args[0] if args else kwargs.get("text")
        texts = [text] if isinstance(text, str) else list(text or ())
        if len(texts) == 1 and isinstance(texts[0], str) and found.encodings:
            self._calls.texts.append(texts[0])
            self._calls.encodings.append(found.encodings[0])
        return found


@contextmanager
def _recorded(processor: Any) -> Iterator[_Calls]:
    calls, tokenizer = _Calls(), processor.tokenizer
    processor.tokenizer = _Recorder(tokenizer, calls)
    try:
        yield calls
    finally:
        processor.tokenizer = tokenizer


def read(processor: Any, written: TextRow, pictures: Sequence[Any], *, placeholder: str) -> Read:
    """Let a processor read a conversation.

    Args:
        processor: of the model.
        written: the text, with one `placeholder` a picture.
        pictures: images of Pillow, in the order of the text.
        placeholder: what the processor replaces by the positions of a picture.

    Raises:
        UnusableRowError: the processor refuses the row.
        DataError: it does not show how it read the text.
    """
    bos = processor.tokenizer.bos_token
    # As `apply_chat_template` of transformers does: a template that writes the first token is not given a second one.
    options = {"add_special_tokens": False} if bos is not None and written.text.startswith(bos) else {}
    try:
        with _recorded(processor) as calls:
            found = processor(
                text=[written.text], images=[list(pictures)] if pictures else None, return_tensors="pt", **options
            )
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UnusableRowError(f"{type(processor).__name__} refuses a row", first) from error
    ids = found["input_ids"]
    own = [index for index, one in enumerate(calls.encodings) if list(one.ids) == ids[0].tolist()]
    if not own:
        raise DataError(
            f"{type(processor).__name__} does not pass the whole text to its tokenizer, so the answers in it cannot be "
            "found; vision_language does not drive this processor yet."
        )
    text, encoding = calls.texts[own[-1]], calls.encodings[own[-1]]
    spans = _moved(written, text, placeholder)
    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    weights = (
        next((one.weight for one in spans if first < one.last and last > one.first), 0.0)
        for first, last in encoding.offsets
    )
    return Read(tensors, list(weights))


def read_suffix(
    processor: Any, question: str, answer: str | None, pictures: Sequence[Any], weight: float = 1.0
) -> Read:
    """PaliGemma: pictures and question are the prefix, the answer is the suffix, and the processor marks it itself."""
    text = processor.image_token * len(pictures) + question
    suffix = {} if answer is None else {"suffix": [answer]}
    found = processor(text=[text], images=[list(pictures)], return_tensors="pt", **suffix)
    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor) and name != "labels"}
    return Read(tensors, ((tensors["token_type_ids"][0] == 1) * weight).tolist())


def takes_suffix(processor: Any) -> bool:
    """Whether the processor takes question and answer apart, instead of a conversation."""
    return type(processor).__name__ == _PREFIX_SUFFIX


def _moved(written: TextRow, text: str, placeholder: str) -> list[Span]:
    """The spans in the text that the tokenizer read: what lies between placeholders is in it unchanged."""
    pieces: list[tuple[int, int, int]] = []
    at = done = 0
    parts = written.text.split(placeholder)
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        found = text.rfind(part, done) if last and part else text.find(part, done)
        if found < 0:
            raise UnusableRowError("the processor changes the text around the pictures, so answers cannot be found")
        pieces.append((at, at + len(part), found - at))
        at, done = at + len(part) + len(placeholder), found + len(part)
    moved = []
    for span in written.spans:
        shift = next((by for first, last, by in pieces if first <= span.first and span.last <= last), None)
        if shift is None:
            raise UnusableRowError("an answer contains a picture; only prompts may")
        moved.append(Span(span.first + shift, span.last + shift, span.weight))
    return moved
