"""Documents as tokens with words and sentences, for objectives that mask words or pair sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerFast

from shardyard.data.tokenizers.tokenizer import plain_backend
from shardyard.errors import DataError

Ints = npt.NDArray[np.int64]

# Texts per tokenizer call; limited because its results take many times the memory of the tokens.
ENCODE_TEXTS = 32

# A stop with closing characters and the space after it, a full-width stop, which needs no space, or an empty line.
_BOUNDARY = re.compile(r"""[.!?…]+["'”’»)\]]*\s+|[。！？]+["”’」』）]*\s*|\n[^\S\n]*\n\s*""")
_ABBREVIATIONS = frozenset(
    [
        *("al", "approx", "cf", "ch", "dr", "e.g", "eg", "eq", "esp", "etc", "fig", "figs", "i.e", "ie", "incl", "jr"),
        *("mr", "mrs", "ms", "nos", "p", "pp", "prof", "ref", "resp", "sec", "sr", "st", "vol", "vs"),
    ]
)
_LAST_WORD = re.compile(r"[\w.]*\w$")


@dataclass(frozen=True)
class Segment:
    """A part of a document: tokens [n], and a number per token that differs between neighbouring words [n].

    `documents` are the indices of the texts that it comes from.
    """

    tokens: Ints
    words: Ints
    documents: tuple[int, ...] = field(default=(), kw_only=True)

    def __len__(self) -> int:
        return len(self.tokens)

    def part(self, first: int, last: int) -> Segment:
        """Tokens `first` … `last` - 1; a view."""
        return Segment(self.tokens[first:last], self.words[first:last], documents=self.documents)


@dataclass(frozen=True)
class Document(Segment):
    """A whole text. `starts` is the index of each token's first character [n]."""

    starts: Ints


class DocumentReader:
    """Tokenises texts without special tokens; text that spells a special token stays text. Tokens are taken as they
    are."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._backend = plain_backend(tokenizer)

    def read(self, texts: Sequence[str]) -> Iterator[Document]:
        """The documents of the texts, in order."""
        for first in range(0, len(texts), ENCODE_TEXTS):
            part: list[Any] = list(texts[first : first + ENCODE_TEXTS])
            if part and isinstance(part[0], np.ndarray):
                yield from map(_of_tokens, part)
                continue
            encodings = self._backend.encode_batch(part, add_special_tokens=False)
            for index, encoding in enumerate(encodings, first):
                # A token outside words is a separate word.
                words = [-1 - at if word is None else word for at, word in enumerate(encoding.word_ids)]
                starts = [start for start, _ in encoding.offsets]
                yield Document(_ints(encoding.ids), _ints(words), _ints(starts), documents=(index,))

    def check_words(self) -> None:
        """Raise DataError if the tokenizer treats a whole text as one word."""
        (document,) = self.read(["one two three"])
        if len(np.unique(document.words)) < 3:
            raise DataError(
                "masking.whole_word needs a tokenizer that splits text into words, which this one does not; choose "
                "a WordPiece or byte-level BPE tokenizer, or set masking.whole_word to false."
            )


def _of_tokens(tokens: npt.NDArray[Any]) -> Document:
    """A document of which the tokens alone are known: each is a word, and the text begins with it."""
    return Document(tokens.astype(np.int64), np.arange(len(tokens)), np.zeros(len(tokens), np.int64))


def _ints(values: list[int]) -> Ints:
    return np.array(values, dtype=np.int64)


def sentence_starts(text: str) -> list[int]:
    """The index of each sentence's first character; the first is 0.

    A sentence ends at an empty line, or at a stop (. ! ? …) that neither follows an abbreviation or initial nor
    precedes a lower-case letter.
    """
    starts = [0]
    for match in _BOUNDARY.finditer(text):
        if match.end() < len(text) and (match[0][0] not in ".…" or _ends(text, match)):
            starts.append(match.end())
    return starts


def _ends(text: str, match: re.Match[str]) -> bool:
    if "\n" in match[0] and re.search(r"\n[^\S\n]*\n", match[0]):
        return True
    if text[match.end()].islower():
        return False
    word = _LAST_WORD.search(text, max(0, match.start() - 20), match.start())
    if word is None or not match[0].startswith(".") or match[0].startswith(".."):
        return True
    return not (word[0].lower() in _ABBREVIATIONS or (len(word[0]) == 1 and word[0].isupper() and word[0] != "I"))


def sentence_bounds(document: Document, text: str) -> list[int]:
    """The first token of each sentence, then the number of tokens: [0, …, n] without repetition."""
    at = np.searchsorted(document.starts, sentence_starts(text)[1:])
    return sorted({0, *at.tolist(), len(document)})


def special_id(tokenizer: Any, name: str, *others: str) -> int:
    """The id of a special token such as `mask_token`, or of the first of `others` that exists.

    Raises:
        DataError: the tokenizer has none of them.
    """
    for candidate in (name, *others):
        found = getattr(tokenizer, f"{candidate}_id")
        if found is not None:
            return int(found)
    raise DataError(
        f"the tokenizer has no {name}, which rows of this objective need; choose one that has, such as "
        "wordpiece-docs-4k, or name it under special_tokens of its spec."
    )


# Families of transformers whose positions start at the id of the padding token + 1.
_POSITIONS_AFTER_PADDING = frozenset(
    [
        *("camembert", "data2vec-text", "esm", "ibert", "longformer", "luke", "mpnet", "roberta"),
        *("roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
    ]
)


def check_positions(length: int, config: Any) -> None:
    """Raise DataError if a row is too long for a model whose positions start after the padding token's id."""
    if getattr(config, "model_type", None) not in _POSITIONS_AFTER_PADDING:
        return
    needed = length + config.pad_token_id + 1
    if needed > config.max_position_embeddings:
        raise DataError(
            f"{config.model_type} counts positions from {config.pad_token_id + 1} on, so rows of {length} tokens need "
            f"model.config.max_position_embeddings of at least {needed}; it is {config.max_position_embeddings}."
        )


def has_segments(config: Any) -> bool:
    """Whether the model distinguishes a first and a second segment (`token_type_ids`)."""
    return getattr(config, "type_vocab_size", 0) >= 2
