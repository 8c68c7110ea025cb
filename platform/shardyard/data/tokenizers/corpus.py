"""The training documents of a tokenizer, read once from their sources and kept in a temporary file.

Training and its report read them several times; the file is anonymous, so that nothing remains even after a crash.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any

from shardyard.data.sources.sources import open_source
from shardyard.data.tokenizers.spec import TokenizerSource, TokenizerSpec
from shardyard.errors import DataError

ROWS_AT_ONCE = 256
Progress = Callable[[str, int, int | None], None]


@dataclass
class SourceRead:
    """A source after reading: `sha256` is over its texts in order."""

    name: str
    documents: int = 0
    empty: int = 0
    bytes: int = 0
    sha256: str = ""


@dataclass
class Corpus:
    """Documents with their labels; `held_out` ones are used only by the report."""

    file: IO[str]
    sources: list[SourceRead] = field(default_factory=list)
    num_training: int = 0
    num_held_out: int = 0

    def documents(self, *, held_out: bool) -> Iterator[tuple[str, str]]:
        """(label, text) of the documents of one side, in the order of the sources."""
        self.file.seek(0)
        for line in self.file:
            side, label, text = json.loads(line)
            if bool(side) is held_out:
                yield label, text

    def texts(self) -> Iterator[str]:
        """Texts to train on."""
        return (text for _, text in self.documents(held_out=False))

    def close(self) -> None:
        self.file.close()


def read_corpus(spec: TokenizerSpec, progress: Progress) -> Corpus:
    """Read the sources of a spec, each document once.

    Raises:
        DataError: a source cannot be read, lacks a column, or no documents remain for training or for the report.
    """
    corpus = Corpus(tempfile.TemporaryFile("w+", encoding="utf-8"))  # noqa: SIM115  closed by its owner
    try:
        total = spec.documents * len(spec.train) if spec.documents is not None else None
        for source in spec.train:
            _read_source(corpus, source, spec, lambda done: progress("reading", done, total))
        _check(corpus, spec)
    except BaseException:
        corpus.close()
        raise
    return corpus


def is_held_out(text: str, fraction: float) -> bool:
    """Whether only the report reads this text, by its hash; same selection as `holdout` in a recipe."""
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return number < fraction * 2.0**64


def _read_source(corpus: Corpus, source: TokenizerSource, spec: TokenizerSpec, progress: Callable[[int], None]) -> None:
    read, digest = SourceRead(source.name), hashlib.sha256()
    corpus.sources.append(read)
    before = sum(other.documents for other in corpus.sources)
    for label, text in _documents(source):
        if spec.documents is not None and read.documents == spec.documents:
            break
        if not text:
            read.empty += 1
            continue
        held_out = is_held_out(text, spec.held_out)
        corpus.file.write(json.dumps([int(held_out), label, text]) + "\n")
        corpus.num_held_out += held_out
        corpus.num_training += not held_out
        read.documents += 1
        data = text.encode()
        read.bytes += len(data)
        digest.update(hashlib.sha256(data).digest())
        progress(before + read.documents)
    read.sha256 = digest.hexdigest()


def _documents(source: TokenizerSource) -> Iterator[tuple[str, str | None]]:
    """(label, text) of every text column of every row."""
    wanted = [*source.text_columns, *([source.language_column] if source.language_column else [])]
    opened = open_source(source.as_recipe_source(), training=True, beside=wanted)
    assert opened.found is not None
    features = opened.found.features
    if missing := [column for column in wanted if column not in features]:
        raise DataError(
            f"{source.name} has no column {missing[0]!r}; it has {', '.join(features)}. "
            "Set text_columns and language_column of the spec to columns that there are."
        )
    for table in _tables(opened.dataset, source.name):
        values = {column: table.column(column).to_pylist() for column in wanted}
        for index in range(table.num_rows):
            for position, column in enumerate(source.text_columns):
                text = values[column][index]
                if text is not None and not isinstance(text, str):
                    raise DataError(f"{source.name}: column {column!r} holds {type(text).__name__}, not text.")
                yield _label(source, position, values, index), text


def _label(source: TokenizerSource, position: int, values: dict[str, list[Any]], index: int) -> str:
    if source.language_column is not None:
        return str(values[source.language_column][index])
    if source.languages:
        return source.languages[position]
    return f"{source.name}:{source.text_columns[position]}" if len(source.text_columns) > 1 else source.name


def _tables(dataset: Any, name: str) -> Iterator[Any]:
    try:
        yield from dataset.with_format("arrow").iter(batch_size=ROWS_AT_ONCE)
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{name} cannot be read to its end: {reason}. Check the data, or the network.") from error


def _check(corpus: Corpus, spec: TokenizerSpec) -> None:
    if corpus.num_training == 0:
        names = ", ".join(source.name for source in corpus.sources)
        raise DataError(f"there is nothing to train a tokenizer on: {names} held no text.")
    if spec.held_out and corpus.num_held_out == 0:
        raise DataError(
            f"held_out {spec.held_out} of {corpus.num_training} documents is none, so the report has nothing to "
            "measure; raise held_out, or set it to 0 to measure the training documents."
        )
