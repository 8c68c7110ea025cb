"""Measurements of a tokenizer's quality: compression, fertility, unknown, rare and long pieces.

Compression is bytes of UTF-8 per token; fertility is tokens per word, where words are separated by white space (Rust et
al. 2021, arXiv:2012.15613). Both are measured without the special tokens of the template.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from shardyard.data.tokenizers.build import special_texts
from shardyard.data.tokenizers.corpus import Corpus, Progress
from shardyard.data.tokenizers.folder import Figures, Measurements, Pieces, Vocabulary
from shardyard.data.tokenizers.spec import TokenizerSpec
from shardyard.data.tokenizers.tokenizer import plain_backend

RARE_BELOW = 10  # Pieces with fewer occurrences in the training documents are rare.
LONGEST = 10  # Pieces shown.
AT_ONCE = 256  # Documents in one call of the tokenizer.


@dataclass
class Tally:
    """Counts over documents; `unknown` is in tokens."""

    documents: int = 0
    bytes: int = 0
    words: int = 0
    tokens: int = 0
    unknown: int = 0

    def add(self, other: Tally) -> None:
        self.documents += other.documents
        self.bytes += other.bytes
        self.words += other.words
        self.tokens += other.tokens
        self.unknown += other.unknown

    def figures(self) -> Figures:
        """Counts and ratios; a ratio without a denominator is None."""
        return {
            "documents": self.documents,
            "bytes": self.bytes,
            "words": self.words,
            "tokens": self.tokens,
            "bytes_per_token": _ratio(self.bytes, self.tokens),
            "tokens_per_word": _ratio(self.tokens, self.words),
            "unknown_share": _ratio(self.unknown, self.tokens),
        }


def measure(
    spec: TokenizerSpec,
    tokenizer: PreTrainedTokenizerFast,
    corpus: Corpus,
    progress: Progress = lambda phase, done, total: None,
) -> Measurements:
    """The figures of a report.

    Compression, fertility and unknown pieces are measured on the held-out documents (on the training documents if
    nothing is held out), by label and in total; rare pieces are counted over the training documents.
    """
    held_out = corpus.num_held_out > 0
    uses = _uses(tokenizer, corpus, progress)
    by_label = tallies(tokenizer, corpus.documents(held_out=held_out))
    overall = Tally()
    for tally in by_label.values():
        overall.add(tally)
    return {
        "vocabulary": _vocabulary(spec, tokenizer),
        "documents": {"training": corpus.num_training, "held_out": corpus.num_held_out},
        "measured_on": "held-out documents" if held_out else "training documents",
        "overall": overall.figures(),
        "by_label": {label: by_label[label].figures() for label in sorted(by_label)},
        "pieces": _pieces(spec, tokenizer, uses),
    }


def tallies(tokenizer: PreTrainedTokenizerFast, documents: Iterable[tuple[str, str]]) -> dict[str, Tally]:
    """Label → counts over its documents."""
    found: dict[str, Tally] = {}
    unknown = tokenizer.unk_token_id
    for labels, texts, encoded in _encoded(tokenizer, documents):
        for label, text, ids in zip(labels, texts, encoded, strict=True):
            missed = 0 if unknown is None else ids.count(unknown)
            one = Tally(1, len(text.encode()), len(text.split()), len(ids), missed)
            found.setdefault(label, Tally()).add(one)
    return found


def _encoded(
    tokenizer: PreTrainedTokenizerFast, documents: Iterable[tuple[str, str]]
) -> Iterator[tuple[list[str], list[str], list[list[int]]]]:
    backend, iterator = plain_backend(tokenizer), iter(documents)
    while chunk := list(islice(iterator, AT_ONCE)):
        labels, texts = [label for label, _ in chunk], [text for _, text in chunk]
        encodings = backend.encode_batch_fast(texts, add_special_tokens=False)
        yield labels, texts, [encoding.ids for encoding in encodings]


def _uses(tokenizer: PreTrainedTokenizerFast, corpus: Corpus, progress: Progress) -> Any:
    """Occurrences of each token id in the training documents, (vocabulary,)."""
    counts, done = np.zeros(len(tokenizer), dtype=np.int64), 0
    for _, texts, encoded in _encoded(tokenizer, corpus.documents(held_out=False)):
        ids = np.array([index for document in encoded for index in document], dtype=np.int64)
        counts += np.bincount(ids, minlength=len(counts))
        done += len(texts)
        progress("measuring", done, corpus.num_training)
    return counts


def _vocabulary(spec: TokenizerSpec, tokenizer: PreTrainedTokenizerFast) -> Vocabulary:
    """`size` is the number of embeddings; it is below `asked` if the data has too few pieces."""
    return {"size": len(tokenizer), "asked": spec.vocabulary, "special": len(special_texts(spec))}


def _pieces(spec: TokenizerSpec, tokenizer: PreTrainedTokenizerFast, uses: Any) -> Pieces:
    special = set(tokenizer.all_special_ids)
    ids = [index for index in range(len(tokenizer)) if index not in special]
    counts = uses[ids]
    texts = {index: piece_text(tokenizer, index) for index in ids}
    longest = sorted(ids, key=lambda index: (-len(texts[index]), texts[index]))[:LONGEST]
    return {
        "rare_below": RARE_BELOW,
        "rare_share": _ratio(int((counts < RARE_BELOW).sum()), len(ids)),
        "unused": int((counts == 0).sum()),
        "longest": [texts[index] for index in longest],
    }


def piece_text(tokenizer: PreTrainedTokenizerFast, index: int) -> str:
    """The piece as its model stores it; byte-level pieces as the text that they encode, if that is valid UTF-8."""
    piece = str(tokenizer.convert_ids_to_tokens(index))
    model = type(tokenizer.backend_tokenizer.model).__name__
    if model != "BPE" or index in tokenizer.all_special_ids:
        return piece
    text = str(tokenizer.backend_tokenizer.decoder.decode([piece]))
    return piece if "\ufffd" in text else text


def _ratio(value: int, of: int) -> float | None:
    return round(value / of, 4) if of else None
