"""The records of W&B's `.wandb` files: LevelDB's log format with W&B's header, each record a protobuf message.

Format: 7 bytes `:W&B`, 0xBEE1, version 0; then blocks of 32 KiB with fragments of records, each with checksum (zlib's
CRC-32 of kind and content), length and kind; see https://github.com/google/leveldb/blob/main/doc/log_format.md.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shardyard.errors import DataError

MAGIC = struct.pack("<4sHB", b":W&B", 0xBEE1, 0)
BLOCK_BYTES = 32 * 1024
MOST_RECORD_BYTES = 64 * 1024**2
_HEADER = struct.Struct("<IHB")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


class Records:
    """The messages of one file, in order. After reading, `problem` says where and why reading ended early, if it did.

    Raises:
        DataError: the file cannot be read, or is not a `.wandb` file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problem: str | None = None
        try:
            with path.open("rb") as file:
                head = file.read(len(MAGIC))
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}.") from error
        if head != MAGIC:
            raise DataError(f"{path} is not a W&B file, or one of an unknown version, by its first bytes.")

    def __iter__(self) -> Iterator[Any]:
        from wandb.proto import wandb_internal_pb2 as messages

        for data in self._records():
            try:
                yield messages.Record.FromString(data)
            except Exception as error:  # noqa: BLE001 - protobuf's kinds of errors differ between its versions
                self.problem = f"a record is damaged ({type(error).__name__}); the rest is left out"
                return

    def _records(self) -> Iterator[bytes]:
        """Records assembled from their fragments."""
        gathered = b""
        for kind, data in self._fragments():
            gathered = gathered + data if kind in (_MIDDLE, _LAST) else data
            if len(gathered) > MOST_RECORD_BYTES:
                self.problem = f"a record is larger than {MOST_RECORD_BYTES >> 20} MiB; the rest is left out"
                return
            if kind in (_FULL, _LAST):
                yield gathered

    def _fragments(self) -> Iterator[tuple[int, bytes]]:
        with self.path.open("rb") as file:
            file.seek(len(MAGIC))
            position = len(MAGIC)
            while True:
                left = BLOCK_BYTES - position % BLOCK_BYTES
                if left < _HEADER.size:  # padding
                    file.seek(left, 1)
                    position += left
                    continue
                head = file.read(_HEADER.size)
                if not head:
                    return
                if len(head) < _HEADER.size:
                    self.problem = "it is cut off"
                    return
                checksum, length, kind = _HEADER.unpack(head)
                data = file.read(length)
                position += len(head) + len(data)
                if (reason := _wrong(checksum, length, kind, data)) is not None:
                    self.problem = reason
                    return
                yield kind, data


def _wrong(checksum: int, length: int, kind: int, data: bytes) -> str | None:
    if len(data) < length:
        return "it is cut off"
    if kind not in (_FULL, _FIRST, _MIDDLE, _LAST) or zlib.crc32(data, zlib.crc32(bytes([kind]))) != checksum:
        return "it is damaged (a checksum is wrong); the rest is left out"
    return None
