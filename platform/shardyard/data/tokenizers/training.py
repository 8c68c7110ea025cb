"""Training a tokenizer from its spec: the same spec and data give the same bytes, on any number of threads.

BPE of `tokenizers` is deterministic. Its WordPiece numbers the continuations of characters (##a) in the order of a
randomly seeded hash table and breaks ties by these numbers, so it is given them in a fixed order; its Unigram sums in
hash-table order, so `unigram.py` replaces it.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from shardyard import __version__
from shardyard.data.tokenizers.build import (
    CONTINUATION,
    MAX_WORD_CHARACTERS,
    pipeline,
    special_texts,
    trained_tokenizer,
)
from shardyard.data.tokenizers.corpus import Corpus, Progress, read_corpus
from shardyard.data.tokenizers.folder import (
    REPORT,
    Described,
    Provenance,
    Report,
    file_hashes,
    folder_fingerprint,
)
from shardyard.data.tokenizers.report import measure
from shardyard.data.tokenizers.spec import TokenizerSpec
from shardyard.data.tokenizers.unigram import train_unigram


def train_tokenizer(
    spec: TokenizerSpec, destination: Path, progress: Progress = lambda phase, done, total: None
) -> Report:
    """Train, measure and write a tokenizer folder; returns its report.

    Args:
        spec: the tokenizer and its training data.
        destination: written atomically; replaced if it exists.
        progress: called with the phase, the number of documents (or rounds) done, and the total if known.

    Raises:
        DataError: a source cannot be read or is empty.
        OSError: the folder cannot be written; an existing one stays unchanged.
    """
    assert spec.is_trained, spec.kind
    corpus = read_corpus(spec, progress)
    try:
        tokenizer = fit(spec, corpus, progress)
        measured = measure(spec, tokenizer, corpus, progress)
    finally:
        corpus.close()
    return write_folder(tokenizer, {**measured, **_provenance(spec, corpus)}, destination)


def fit(spec: TokenizerSpec, corpus: Corpus, progress: Progress = lambda phase, done, total: None) -> Any:
    """Train a tokenizer (PreTrainedTokenizerFast) on a corpus."""
    learn = {"bpe": _bpe, "wordpiece": _wordpiece, "unigram": _unigram}[spec.kind]
    return trained_tokenizer(spec, learn(spec, corpus, progress))


def write_folder(tokenizer: PreTrainedTokenizerFast, described: Described, destination: Path) -> Report:
    """Write tokenizer files and report.json with their hashes to a temporary folder, rename it; returns the report."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{destination.name}-", dir=destination.parent))
    try:
        tokenizer.save_pretrained(aside)
        # Without line breaks between pieces the file is half the size.
        (aside / "tokenizer.json").write_text(tokenizer.backend_tokenizer.to_str(), encoding="utf-8")
        hashes = file_hashes(aside)
        report: Report = {**described, "files": hashes, "fingerprint": folder_fingerprint(hashes)}
        (aside / REPORT).write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        aside.chmod(0o755)
        _replace(aside, destination)
        return report
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _replace(aside: Path, destination: Path) -> None:
    """Replace a folder with a complete new one; the old one is restored if that fails."""
    old = aside.with_name(f"{aside.name}-old")
    try:
        if destination.exists():
            destination.rename(old)
        aside.rename(destination)
    finally:
        if old.exists() and not destination.exists():
            old.rename(destination)
        shutil.rmtree(old, ignore_errors=True)


def _bpe(spec: TokenizerSpec, corpus: Corpus, progress: Progress) -> Any:
    trainer = trainers.BpeTrainer(
        vocab_size=spec.size,
        min_frequency=spec.min_frequency,
        special_tokens=special_texts(spec),
        max_token_length=spec.max_piece_length,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    return _library_trained(pipeline(spec, models.BPE()), trainer, corpus, progress).model


def _wordpiece(spec: TokenizerSpec, corpus: Corpus, progress: Progress) -> Any:
    unknown = spec.special_tokens["unk_token"]
    backend = pipeline(spec, models.WordPiece(unk_token=unknown))
    alphabet = _alphabet(_characters(backend, corpus), spec)
    # As special tokens, continuations are numbered here instead of in hash-table order.
    first = [*special_texts(spec), *(CONTINUATION + character for character in alphabet)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=spec.size,
        min_frequency=spec.min_frequency,
        special_tokens=first,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        continuing_subword_prefix=CONTINUATION,
        show_progress=False,
    )
    pieces = _library_trained(backend, trainer, corpus, progress).get_vocab()
    return models.WordPiece(
        vocab=dict(sorted(pieces.items(), key=lambda item: item[1])),
        unk_token=unknown,
        continuing_subword_prefix=CONTINUATION,
        max_input_chars_per_word=MAX_WORD_CHARACTERS,
    )


def _unigram(spec: TokenizerSpec, corpus: Corpus, progress: Progress) -> Any:
    backend, words = pipeline(spec, models.Unigram()), Counter[str]()
    for text in _counted(corpus, progress):
        words.update(word for word, _ in backend.pre_tokenizer.pre_tokenize_str(_normalized(backend, text)))
    characters: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            characters[character] += count
    specials = special_texts(spec)
    pieces = train_unigram(
        words,
        spec.size - len(specials),
        alphabet=_alphabet(characters, spec),
        min_frequency=spec.min_frequency,
        max_length=spec.max_piece_length,
        progress=lambda done, total: progress("estimating", done, total),
    )
    taken = set(specials)
    vocabulary = [*((text, 0.0) for text in specials), *(piece for piece in pieces if piece[0] not in taken)]
    return models.Unigram(vocabulary, unk_id=specials.index(spec.special_tokens["unk_token"]), byte_fallback=False)


def _library_trained(backend: Tokenizer, trainer: Any, corpus: Corpus, progress: Progress) -> Tokenizer:
    backend.train_from_iterator(_counted(corpus, progress), trainer)
    return backend


def _counted(corpus: Corpus, progress: Progress) -> Iterator[str]:
    for number, text in enumerate(corpus.texts(), 1):
        yield text
        progress("training", number, corpus.num_training)


def _characters(backend: Tokenizer, corpus: Corpus) -> Counter[str]:
    counts: Counter[str] = Counter()
    for text in corpus.texts():
        counts.update(_normalized(backend, text))
    return Counter({character: count for character, count in counts.items() if not character.isspace()})


def _normalized(backend: Tokenizer, text: str) -> str:
    return str(backend.normalizer.normalize_str(text)) if backend.normalizer is not None else text


def _alphabet(counts: Counter[str], spec: TokenizerSpec) -> list[str]:
    """The most frequent characters, up to the limits of the spec and half the vocabulary, sorted."""
    limit = min(spec.alphabet, max(1, (spec.size - len(special_texts(spec))) // 2))
    most = sorted(counts, key=lambda character: (-counts[character], character))[:limit]
    return sorted(most)


def _provenance(spec: TokenizerSpec, corpus: Corpus) -> Provenance:
    libraries = {name: importlib.metadata.version(name) for name in ("tokenizers", "transformers", "numpy")}
    return {
        "spec": spec.definition(),
        "data": [asdict(source) for source in corpus.sources],
        "versions": {"shardyard": __version__, "python": platform.python_version(), **libraries},
    }
