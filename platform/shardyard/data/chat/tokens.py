"""From the text of a conversation to tokens, each with its weight in the loss.

T: tokens of a conversation.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

Range = tuple[int, int]


@dataclass(frozen=True)
class Span:
    """The characters [first, last) of a text, which are trained with `weight` > 0."""

    first: int
    last: int
    weight: float = 1.0


@dataclass(frozen=True)
class Encoded:
    """Token ids [T], and the weight of each in the loss [T]: 0 outside answers."""

    ids: list[int]
    weights: list[float]

    @property
    def is_answer(self) -> list[bool]:
        """Whether each token belongs to an answer that is trained [T]."""
        return [weight > 0 for weight in self.weights]


def tokens_of(
    tokenizer: PreTrainedTokenizerFast, text: str, answers: Sequence[Span], quoted: Sequence[Range] = ()
) -> Encoded:
    """Tokens of a text.

    Args:
        answers: what is trained.
        quoted: ranges of characters in which special tokens are read as text.
    """
    found = _tokens(tokenizer, text, quoted, ())
    # A prompt is tokenized by itself when the model answers, so no token may begin in it and end in the answer.
    straddled = [one.first for one in answers if any(start < one.first < end for _, start, end in found)]
    if straddled:
        split = _tokens(tokenizer, text, quoted, straddled)
        # Tokenizers that put a space before a text cannot tokenize a text in parts.
        if _decoded(tokenizer, split) == _decoded(tokenizer, found):
            found = split
    return Encoded(
        [token for token, _, _ in found],
        [next((one.weight for one in answers if one.first <= start < one.last), 0.0) for _, start, _ in found],
    )


def _tokens(
    tokenizer: PreTrainedTokenizerFast, text: str, quoted: Sequence[Range], cuts: Sequence[int]
) -> list[tuple[int, int, int]]:
    """Each token with the indices of its first character and of the one behind it."""
    bounds = sorted({0, len(text), *(at for span in quoted for at in span), *cuts})
    found: list[tuple[int, int, int]] = []
    for start, end in itertools.pairwise(bounds):
        literal = any(first <= start < last for first, last in quoted)
        encoded = tokenizer(
            text[start:end],
            add_special_tokens=False,
            return_offsets_mapping=True,
            split_special_tokens=literal,
            truncation=False,
        )
        pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        found += [(token, start + first, start + last) for token, (first, last) in pairs]
    return found


def _decoded(tokenizer: PreTrainedTokenizerFast, found: Sequence[tuple[int, int, int]]) -> str:
    return str(tokenizer.decode([token for token, _, _ in found], clean_up_tokenization_spaces=False))
