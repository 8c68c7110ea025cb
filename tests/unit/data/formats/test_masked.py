"""Rows with hidden tokens: which tokens are hidden, how, and that nothing of a document is lost."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, ModernBertConfig, PreTrainedTokenizerFast, RobertaConfig

from shardyard.data.formats import FormatInputs, make_rows
from shardyard.data.formats.masked import MaskedRows
from shardyard.data.tokenizers.tokenizer import load_tokenizer
from shardyard.errors import DataError
from shardyard.recipe.schema import Data, Masking, Source
from support.data_cases import batches, bytes_tokenizer, data, write_jsonl
from support.tiny import WORDS
from support.wordpieces import tiny_wordpiece

IGNORED = -100
TEXTS = [" ".join(np.random.default_rng(n).choice(WORDS, 5 + n % 70)) for n in range(60)]


def rows_format(
    tokenizer: PreTrainedTokenizerFast | None = None,
    *,
    length: int = 32,
    isolate: bool = True,
    model: Any = None,
    **masking: Any,
) -> MaskedRows:
    settings = Masking(**{"short_probability": 0.0, **masking})
    recipe = Data(sequence_length=length, isolate_documents=isolate, train=[Source(path="unread")])
    made = make_rows("masked_lm", FormatInputs(recipe, tokenizer or tiny_wordpiece(), model, settings))
    assert isinstance(made, MaskedRows)
    return made


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def whole(row: dict[str, Any]) -> list[int]:
    """The tokens before any was hidden."""
    return np.where(row["labels"] == IGNORED, row["input_ids"], row["labels"]).tolist()


def encoded(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    return [tokenizer(text, add_special_tokens=False).input_ids for text in texts]


@pytest.mark.parametrize("short_probability", [0.0, 0.5])
def test_rows_hold_each_token_of_each_document_once(short_probability: float) -> None:
    tokenizer = tiny_wordpiece()
    made = rows_format(tokenizer, short_probability=short_probability)
    pieces = made.pieces(TEXTS, generator())
    found = [whole(made.row(piece, generator(n))) for n, piece in enumerate(pieces)]
    assert all(row[0] == tokenizer.cls_token_id and row[-1] == tokenizer.sep_token_id for row in found)
    assert all(3 <= len(row) <= 32 for row in found)
    expected = sorted(token for tokens in encoded(TEXTS, tokenizer) for token in tokens)
    assert sorted(token for row in found for token in row[1:-1]) == expected
    assert made.num_cut == 0
    full = sum(len(row) == 32 for row in found)
    needed = sum(len(tokens) // 30 for tokens in encoded(TEXTS, tokenizer))
    assert full == needed if short_probability == 0 else full < needed


def test_a_row_is_of_one_document_unless_they_are_joined() -> None:
    tokenizer = tiny_wordpiece()
    apart, joined = rows_format(tokenizer), rows_format(tokenizer, isolate=False)
    documents = encoded(TEXTS, tokenizer)
    for piece in apart.pieces(TEXTS, generator()):
        text = piece.tokens.tolist()
        assert any(text == tokens[at : at + len(text)] for tokens in documents for at in range(0, len(tokens), 30))
    lengths = sorted(len(piece) for piece in joined.pieces(TEXTS, generator()))
    assert set(lengths[1:]) == {30}
    separators = sum(tokenizer.sep_token_id in piece.tokens for piece in joined.pieces(TEXTS, generator()))
    assert separators > 20


def test_shares_of_hidden_tokens() -> None:
    tokenizer = tiny_wordpiece()
    made = rows_format(tokenizer, probability=0.2)
    rows = [made.row(p, generator(n)) for n, p in enumerate(made.pieces(TEXTS * 20, generator()))]
    tokens = np.concatenate([row["input_ids"] for row in rows])
    labels = np.concatenate([row["labels"] for row in rows])
    chosen = labels != IGNORED
    ordinary = sum(len(row["labels"]) - 2 for row in rows)
    assert chosen.sum() / ordinary == pytest.approx(0.2, abs=0.01)
    hidden = tokens[chosen] == tokenizer.mask_token_id
    kept = tokens[chosen] == labels[chosen]
    assert hidden.mean() == pytest.approx(0.8, abs=0.02)
    # A random token is the right one by chance, once in the vocabulary.
    assert kept.mean() == pytest.approx(0.1 + 0.1 / len(tokenizer), abs=0.015)
    special = set(tokenizer.all_special_ids)
    assert special.isdisjoint(tokens[chosen & (tokens != tokenizer.mask_token_id)].tolist())
    assert len(set(tokens[chosen & (tokens != tokenizer.mask_token_id)].tolist())) == len(tokenizer) - len(special)


def test_special_tokens_are_never_predicted() -> None:
    tokenizer = tiny_wordpiece()
    made = rows_format(tokenizer, probability=0.9)
    text = "the 日 model [MASK] 本 loss"
    assert tokenizer.unk_token_id in tokenizer(text).input_ids
    special = set(tokenizer.all_special_ids)
    for n in range(50):
        (piece,) = made.pieces([text], generator())
        row = made.row(piece, generator(n))
        assert special.isdisjoint(set(row["labels"].tolist()) - {IGNORED})
    (piece,) = made.pieces(["日 本"], generator())
    assert set(made.row(piece, generator())["labels"].tolist()) == {IGNORED}


def byte_level() -> PreTrainedTokenizerFast:
    tokenizer = load_tokenizer("bpe-docs-4k")
    tokenizer.add_special_tokens({"cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"})
    return tokenizer


@pytest.mark.parametrize("make_tokenizer", [tiny_wordpiece, byte_level])
def test_whole_words_are_hidden_in_one_piece(make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer()
    text = "weight token model weight weight stream token weight batch token seed weight"
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
    word = np.array([text[: (start + end) // 2].count(" ") for start, end in offsets])
    assert len(word) > word[-1] + 1, "some word has several pieces"
    split = []
    for whole_word in (True, False):
        made = rows_format(tokenizer, length=64, whole_word=whole_word, probability=0.4)
        (piece,) = made.pieces([text], generator())
        rows = [made.row(piece, generator(n))["labels"][1:-1] != IGNORED for n in range(40)]
        assert all(1 <= row.sum() <= round(0.4 * len(word)) for row in rows)
        assert np.mean([row.mean() for row in rows]) == pytest.approx(0.4, abs=0.06)
        split.append(any(len(set(row[word == w])) > 1 for row in rows for w in set(word)))
    assert split == [False, True]


def test_arrays_of_a_row_and_padding() -> None:
    tokenizer = tiny_wordpiece()
    made = rows_format(tokenizer, model=BertConfig())
    pieces = sorted(made.pieces(["the model", "a loss of a batch"], generator()), key=len)
    batch = made.collate([made.row(piece, generator()) for piece in pieces])
    assert batch["attention_mask"].tolist()[0] == [1] * (len(pieces[0]) + 2) + [0] * (len(pieces[1]) - len(pieces[0]))
    padded = batch["attention_mask"] == 0
    assert set(batch["input_ids"][padded].tolist()) == {tokenizer.pad_token_id}
    assert set(batch["labels"][padded].tolist()) == {IGNORED}
    assert not batch["token_type_ids"].any()
    # ModernBERT has no segments.
    made = rows_format(tokenizer, model=ModernBertConfig())
    (piece,) = made.pieces(["the model"], generator())
    assert "token_type_ids" not in made.row(piece, generator())


def masked_batches(folder: Path, count: int, state: Any = None, **options: Any) -> list[Any]:
    recipe = data([Source(path=write_jsonl(folder, [TEXTS[:12]]))], sequence_length=24)
    return batches(recipe, count, state, objective="masked_lm", tokenizer=tiny_wordpiece(), **options)


def test_hidden_tokens_change_with_each_epoch_and_resume_exactly(tmp_path: Path) -> None:
    made = masked_batches(tmp_path, 40)
    by_text: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    for batch in made:
        for part in batch.micro_batches:
            for tokens, labels in zip(part["input_ids"], part["labels"], strict=True):
                key = tuple(torch.where(labels == IGNORED, tokens, labels).tolist())
                by_text.setdefault(key, set()).add(tuple(labels.tolist()))
    assert max(map(len, by_text.values())) > 2
    again = masked_batches(tmp_path, 3, made[8].state)
    for batch, expected in zip(again, made[9:12], strict=True):
        for part, same in zip(batch.micro_batches, expected.micro_batches, strict=True):
            assert part.keys() == same.keys()
            assert all(torch.equal(part[name], same[name]) for name in part)
    assert all(a.state != b.state for a, b in pairwise(made))


def test_tokenizers_and_models_that_will_not_do() -> None:
    with pytest.raises(DataError, match="no mask_token"):
        rows_format(bytes_tokenizer())
    wordless = bytes_tokenizer().__class__(
        tokenizer_object=bytes_tokenizer().backend_tokenizer, mask_token="<m>", pad_token="<p>", bos_token="<b>"
    )
    with pytest.raises(DataError, match="splits text into words"):
        rows_format(wordless, whole_word=True)
    with pytest.raises(DataError, match="at least 33; it is 32"):
        rows_format(model=RobertaConfig(pad_token_id=0, max_position_embeddings=32))
    rows_format(model=RobertaConfig(pad_token_id=0, max_position_embeddings=33))
    with pytest.raises(DataError, match="at least 4 tokens"):
        rows_format(length=3)
