"""Arrays of token ids equal what the tokenizer says, also where the bytes are taken as they are."""

from __future__ import annotations

import random
import sys

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers

from shardyard.data.tokenizers.arrays import TokenArrays, byte_ids
from shardyard.data.tokenizers.tokenizer import load_tokenizer, plain_backend

PIECES = ["a", " ", "\n", "é", "日本", "👩‍👩‍👧", "\0", "\x7f", "<|endoftext|>", "[MASK]", "  x", "​", "don't"]


def texts() -> list[str]:
    """Random texts of all kinds of characters, and those that spell special tokens."""
    drawn = random.Random(5)
    characters = [chr(n) for n in range(sys.maxunicode) if not 0xD800 <= n < 0xE000]
    mixed = ["".join(drawn.choices(PIECES, k=drawn.randrange(9))) for _ in range(60)]
    return [*mixed, *("".join(drawn.choices(characters, k=drawn.randrange(40))) for _ in range(60))]


@pytest.mark.parametrize("name", ["bytes", "bpe-docs-4k", "unigram-docs-4k", "wordpiece-docs-4k"])
def test_arrays_are_the_ids_of_the_tokenizer(name: str) -> None:
    tokenizer, given = load_tokenizer(name, ["<extra>"]), [*texts(), "<extra>", ""]
    expected = plain_backend(tokenizer).encode_batch(given, add_special_tokens=False)
    found = TokenArrays(tokenizer).encode(given, [7], [9, 8])
    assert [array.tolist() for array in found] == [[7, *one.ids, 9, 8] for one in expected]
    assert {array.dtype for array in found} == {np.dtype(np.uint16)}
    assert [a.tolist() for a in TokenArrays(tokenizer).encode(given)] == [one.ids for one in expected]


def test_bytes_need_no_call_of_the_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = TokenArrays(load_tokenizer("bytes"))
    monkeypatch.setattr(arrays, "_backend", None)
    assert arrays.encode(["é<|endoftext|>"])[0].tolist() == list("é<|endoftext|>".encode())


def test_only_a_tokenizer_of_bytes_is_taken_for_one() -> None:
    assert byte_ids(plain_backend(load_tokenizer("bytes"))) == list(range(256))
    assert byte_ids(plain_backend(load_tokenizer("bpe-docs-4k"))) is None
    plain = plain_backend(load_tokenizer("bytes"))

    def changed(attribute: str, value: object) -> Tokenizer:
        other = Tokenizer.from_str(plain.to_str())
        setattr(other, attribute, value)
        return other

    assert byte_ids(changed("normalizer", normalizers.NFC())) is None
    assert byte_ids(changed("pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True))) is None
    assert byte_ids(changed("pre_tokenizer", pre_tokenizers.Whitespace())) is None
    told = Tokenizer.from_str(plain.to_str())
    told.add_tokens([AddedToken("word", normalized=False)])
    assert byte_ids(told) is None


def test_bytes_may_have_other_ids() -> None:
    # As in ByT5 or in models whose special tokens come first.
    backend = plain_backend(load_tokenizer("bytes"))
    state = backend.to_str().replace('"vocab":{', '"vocab":{"<first>":300,', 1)
    assert byte_ids(Tokenizer.from_str(state)) == list(range(256))
