"""Token ids in the files of other libraries: OLMo-core, Megatron, datatrove and nanotron, nanoGPT and llm.c."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shardyard.data.sources.sources import Broken
from shardyard.data.tokenized.documents import TokenRow, Tokens
from shardyard.data.tokenized.layout import EMPTY, USABLE, mapped
from shardyard.errors import DataError
from shardyard.recipe.sources.token_sets import tokenized_root
from shardyard.recipe.sources.tokens import TokenFile, token_file

Bounds = npt.NDArray[np.int64]
_MEGATRON_HEADER_BYTES = 34
_BLOCK = 1 << 24
# The bounds of smaller files are found again in milliseconds.
_KEPT_FROM_BYTES = 1 << 26
# A file without separators is divided into so many pieces, if these are no shorter and no longer than this, in tokens.
_PIECES, _SHORTEST, _LONGEST = 256, 512, 8192
# Ids that are looked at before training.
_CHECKED = 1 << 16


@dataclass(frozen=True)
class Vocabulary:
    """Of the recipe: the size of the model's vocabulary, that of the tokenizer, and the ids that separate documents."""

    size: int
    tokenizer_size: int
    separators: tuple[int, ...]


class ForeignPart:
    """A file of token ids. Documents are without the separators around them. Safe for several threads.

    In files with an index, it says where documents are. In others, they lie between separators; a file that has none is
    divided into pieces.

    Raises:
        DataError: the file cannot be read, or begins with ids that the model does not have.
    """

    def __init__(self, path: str, vocabulary: Vocabulary, given: str | None) -> None:
        self.name = path
        self._vocabulary = vocabulary
        self._file = file = token_file(path, given)
        kind = file.token_type or given or _usual_type(file, vocabulary.tokenizer_size)
        self.token_type = kind
        self._path = Path(path)
        self._tokens: Tokens = mapped(self._path, np.dtype(kind).newbyteorder("<"), file.offset, file.count)
        self._lock = threading.Lock()
        self._bounds: tuple[Bounds, Bounds] | None = None
        self.is_divided = False
        self._check(self._tokens[:_CHECKED], "its beginning")

    def num_rows(self) -> int:
        """The number of documents; finds them when it is first asked for."""
        return len(self._found()[0])

    def rows(self, numbers: Sequence[int]) -> list[TokenRow | Broken]:
        """Some documents, by ascending numbers.

        Raises:
            DataError: one holds an id that the model does not have.
        """
        begins, ends = self._found()
        chosen = np.array(numbers, dtype=np.int64)
        found: list[TokenRow | Broken] = []
        for number, begin, end in zip(numbers, begins[chosen].tolist(), ends[chosen].tolist(), strict=True):
            tokens = self._tokens[begin:end]
            self._check(tokens, f"document {number + 1}")
            tokens = tokens if self._file.index is None else self._stripped(tokens)
            found.append(TokenRow(tokens, status=USABLE if len(tokens) else EMPTY))
        return found

    def place(self, number: int) -> str:
        """`part-0.bin, document 61`."""
        return f"{self._path.name}, document {number + 1}"

    def _stripped(self, tokens: Tokens) -> Tokens:
        first, last = 0, len(tokens)
        while first < last and int(tokens[first]) in self._vocabulary.separators:
            first += 1
        while first < last and int(tokens[last - 1]) in self._vocabulary.separators:
            last -= 1
        return tokens[first:last]

    def _check(self, tokens: Tokens, where: str) -> None:
        if not len(tokens):
            return
        largest, smallest = int(tokens.max()), int(tokens.min())
        if largest >= self._vocabulary.size or smallest < 0:
            wrong = largest if largest >= self._vocabulary.size else smallest
            raise DataError(
                f"{self.name}: {where} holds the token id {wrong}, and the model has {self._vocabulary.size} tokens. "
                f"Its ids were read as {self.token_type}: set the tokenizer with which the file was made, or "
                "token_type."
            )

    def _found(self) -> tuple[Bounds, Bounds]:
        with self._lock:
            if self._bounds is None:
                self._bounds = self._read_bounds()
            return self._bounds

    def _read_bounds(self) -> tuple[Bounds, Bounds]:
        file = self._file
        if file.kind == "megatron":
            return _megatron_bounds(file, np.dtype(self.token_type).itemsize, len(self._tokens))
        if file.kind == "datatrove":
            ends = mapped(Path(str(file.index)), "<u8").astype(np.int64)
            return _checked(file, np.concatenate([np.zeros(1, np.int64), ends[:-1]])[: len(ends)], ends, self._tokens)
        begins, ends = _kept_bounds(self._path, self._tokens, self._vocabulary.separators)
        if len(begins) == 1:
            self.is_divided = True
            length = min(max(len(self._tokens) // _PIECES, _SHORTEST), _LONGEST)
            begins = np.arange(int(begins[0]), int(ends[0]), length, dtype=np.int64)
            ends = np.append(begins[1:], ends[0])
        return begins, ends


def _usual_type(file: TokenFile, vocabulary: int) -> str:
    """The type of ids of a file that does not tell: of OLMo-core the smallest one, of nanoGPT 16 bits."""
    if file.kind == "npy" and vocabulary <= 1 << 8:
        return "uint8"
    return "uint16" if vocabulary <= 1 << 16 else "uint32"


def _megatron_bounds(file: TokenFile, width: int, size: int) -> tuple[Bounds, Bounds]:
    """Documents are consecutive sequences."""
    path, at = Path(str(file.index)), _MEGATRON_HEADER_BYTES
    lengths = mapped(path, "<i4", at, file.sequences)
    pointers = mapped(path, "<i8", at + 4 * file.sequences, file.sequences)
    documents = mapped(path, "<i8", at + 12 * file.sequences, file.documents).astype(np.int64)
    if file.sequences == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    starts = np.append(pointers // width, pointers[-1] // width + lengths[-1])
    if len(documents) < 2 or documents[0] != 0 or documents[-1] != file.sequences or (np.diff(documents) < 0).any():
        raise DataError(f"{path} does not list its sequences by documents; make it again.")
    if (np.diff(starts) != lengths).any() or starts[-1] > size:
        raise DataError(f"{path} does not fit {file.path}: its sequences lie elsewhere; copy both again.")
    return starts[documents[:-1]], starts[documents[1:]]


def _checked(file: TokenFile, begins: Bounds, ends: Bounds, tokens: Tokens) -> tuple[Bounds, Bounds]:
    if len(ends) and ((begins > ends).any() or ends[-1] > len(tokens)):
        raise DataError(f"{file.index} does not fit {file.path}: its documents do not follow each other.")
    return begins, ends


def _kept_bounds(path: Path, tokens: Tokens, separators: tuple[int, ...]) -> tuple[Bounds, Bounds]:
    """Where documents begin and end: found once by reading the file, and kept in the cache folder."""
    status = path.stat()
    if tokens.nbytes < _KEPT_FROM_BYTES:
        return _find_bounds(tokens, separators)
    state = [str(path.resolve()), status.st_size, status.st_mtime_ns, separators, tokens.dtype.str]
    kept = tokenized_root() / f"bounds-{hashlib.sha256(repr(state).encode()).hexdigest()[:24]}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):
        found: Any = np.load(kept, mmap_mode="r", allow_pickle=False)
        return found[0], found[1]
    begins, ends = _find_bounds(tokens, separators)
    with contextlib.suppress(OSError):  # Without the cache they are found again at the next start.
        kept.parent.mkdir(parents=True, exist_ok=True)
        descriptor, partial = tempfile.mkstemp(prefix=".bounds-", dir=kept.parent)
        with open(descriptor, "wb") as file:
            np.save(file, np.stack([begins, ends]))
        os.replace(partial, kept)
    return begins, ends


def _find_bounds(tokens: Tokens, separators: tuple[int, ...]) -> tuple[Bounds, Bounds]:
    """The runs of tokens between separators."""
    places: list[Bounds] = []
    for first in range(0, len(tokens), _BLOCK):
        block = tokens[first : first + _BLOCK]
        is_separator = block == separators[0]
        for other in separators[1:]:
            is_separator |= block == other
        places.append(np.flatnonzero(is_separator) + first)
    at = np.concatenate([np.full(1, -1), *places, np.full(1, len(tokens))]).astype(np.int64)
    begins, ends = at[:-1] + 1, at[1:]
    kept = ends > begins
    return begins[kept], ends[kept]
