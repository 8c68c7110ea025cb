"""Texts to arrays of token ids: the bytes themselves where a token is a byte, else by the tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from shardyard.data.tokenizers.build import byte_characters
from shardyard.data.tokenizers.tokenizer import plain_backend, vocabulary_size

Tokens = npt.NDArray[np.integer[Any]]


class TokenArrays:
    """Token ids of texts, in the smallest type of 16 or 32 bits that holds the vocabulary.

    No special tokens are added, and a text that spells one stays text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._backend = plain_backend(tokenizer)
        # Documents are buffered as tokens; a small type keeps windows of long documents small.
        small = len(tokenizer) <= 1 << 16 and vocabulary_size(tokenizer) <= 1 << 16
        self._dtype = np.dtype(np.uint16 if small else np.int32)
        ids = byte_ids(self._backend)
        self._of_byte = None if ids is None else np.array(ids, dtype=self._dtype)

    def encode(self, texts: Sequence[str], head: Sequence[int] = (), tail: Sequence[int] = ()) -> list[Tokens]:
        """An array for each text, with the tokens `head` before and `tail` after those of the text."""
        if self._of_byte is not None:
            ids = [self._of_byte[np.frombuffer(text.encode(), dtype=np.uint8)] for text in texts]
            return self.framed(ids, head, tail) if head or tail else ids
        found = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        # The library hands out lists alone; they become arrays at once.
        return [self._array(encoding.ids, head, tail) for encoding in found]

    def framed(self, ids: Sequence[Tokens], head: Sequence[int], tail: Sequence[int]) -> list[Tokens]:
        """Each array, of whatever type its ids are stored in, with the tokens `head` before and `tail` after it."""
        found: list[Tokens] = []
        first, rest = len(head), len(head) + len(tail)
        for tokens in ids:
            whole: Tokens = np.empty(len(tokens) + rest, dtype=self._dtype)
            whole[:first] = head
            whole[first : first + len(tokens)] = tokens
            whole[first + len(tokens) :] = tail
            found.append(whole)
        return found

    def _array(self, ids: list[int], head: Sequence[int], tail: Sequence[int]) -> Tokens:
        ids[:0] = head
        ids += tail
        return np.fromiter(ids, dtype=self._dtype, count=len(ids))


def byte_ids(backend: Tokenizer) -> list[int] | None:
    """The token id of each byte, for a tokenizer that makes one token of every byte of a text; else None.

    Args:
        backend: as `plain_backend` makes it: special tokens in a text are read as text.
    """
    state = json.loads(backend.to_str())
    model, splits = state["model"], state["pre_tokenizer"] or {}
    is_plain = (
        model.get("type") == "BPE"
        and not model["merges"]
        and not any(model.get(name) for name in ("dropout", "ignore_merges", "byte_fallback"))
        and not any(model.get(name) for name in ("continuing_subword_prefix", "end_of_word_suffix"))
        and splits.get("type") == "ByteLevel"
        and not splits["add_prefix_space"]
        and not state["normalizer"]
        and all(token["special"] for token in state["added_tokens"])
    )
    if not is_plain:
        return None
    ids = [model["vocab"].get(character) for character in byte_characters()]
    return None if None in ids else ids
