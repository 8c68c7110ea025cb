"""Opening files for reading: local or by URL, compressed or not."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, Any, cast

import pyarrow as pa
from datasets.utils.file_utils import xopen

from shardyard.recipe.seen_columns import UTF16
from shardyard.recipe.sources.files import compression

# As `datasets` reads text and JSON; the chunks are part of its resumable state.
CHUNK_BYTES = 10 << 20


@contextmanager
def opened(path: str) -> Iterator[IO[bytes]]:
    """The decompressed bytes of a file."""
    with ExitStack() as stack:
        remote = "://" in path
        file: IO[bytes] = stack.enter_context(xopen(path, "rb") if remote else open(path, "rb"))  # noqa: SIM115
        content = cast("IO[bytes]", stack.enter_context(_decompressed(file, compression(path))))
        yield content if remote or not content.seekable() else _as_utf8(content)


def _as_utf8(content: IO[bytes]) -> IO[bytes]:
    """The content, or that of a text in UTF-16, which begins with its byte-order mark, in UTF-8."""
    mark = content.read(2)
    content.seek(0)
    return io.BytesIO(content.read().decode("utf-16").encode()) if mark in UTF16 else content


def read_remote(url: str) -> bytes:
    """The content of a file behind a URL.

    Raises:
        OSError: there is no such file. UnavailableError: the server kept failing.
    """
    with xopen(url, "rb") as file:
        return cast("bytes", file.read())


def _decompressed(file: IO[bytes], how: str | None) -> Any:
    if how == ".gz":
        return gzip.GzipFile(fileobj=file)
    if how == ".bz2":
        return bz2.BZ2File(file)
    if how == ".xz":
        return lzma.LZMAFile(file)
    if how == ".zst":
        return io.BufferedReader(cast("Any", _Raw(pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd"))))
    return file


class _Raw(io.RawIOBase):
    """A stream of pyarrow as Python's own."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def chunks(file: IO[bytes]) -> Iterator[bytes]:
    """The bytes in parts that end with a line."""
    while chunk := file.read(CHUNK_BYTES):
        yield chunk + file.readline()
