"""The ledger of a run on disk: the states of its data streams at regular steps, from which every row can be made again.

    ledger/00002-00001.ledger   attempt 2, rank 1
      shardyard ledger 1\n
      frame …                   length and CRC-32 of the content (little-endian, 4 bytes each), then the content

The content of a frame is JSON, deflated with the content of the frame before as its dictionary, of which it mostly is a
repetition. The first frame of a file is a header, each other one an entry. A killed process leaves at most a torn last
frame, which a reader passes over and a later writer cuts off.
"""

from __future__ import annotations

import json
import logging
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

from shardyard.data.stream.streams import StreamState, StreamStates

log = logging.getLogger(__name__)

MAGIC = b"shardyard ledger 1\n"
# Rows of a stream between two entries: few enough to make them again within a second or two.
ROWS_BETWEEN = 64
_FRAME = struct.Struct("<II")
_DICTIONARY_BYTES = 1 << 15
_NAME = re.compile(r"^(\d+)-(\d+)\.ledger$")


class Header(TypedDict):
    """What the order of an attempt depends on beside its sources. `step`: steps that were done before it.

    `data`: the section of the recipe.
    """

    step: int
    streams: int
    seed: int
    global_batch: int
    readers: int
    data: Mapping[str, object]


class _Entry(TypedDict):
    step: int
    states: StreamStates


@dataclass
class AttemptRecord:
    """The entries of one attempt. `states`: stream → step → state after it, of some streams."""

    number: int
    header: Header
    states: dict[int, dict[int, StreamState]] = field(default_factory=dict)


class LedgerWriter:
    """Writes the entries of one rank in one attempt. It never ends a training: if it cannot write, it says so once."""

    def __init__(self, folder: Path, attempt: int, rank: int, header: Header) -> None:
        self._path = folder / f"{attempt:05d}-{rank:05d}.ledger"
        self._every = max(1, -(-ROWS_BETWEEN * header["streams"] // header["global_batch"]))
        self._file: BinaryIO | None = None
        self._before = b""
        try:
            folder.mkdir(exist_ok=True)
            self._file = self._open()
            self._write(header)
        except OSError as error:
            self._give_up(error)

    def after(self, step: int, states: StreamStates) -> None:
        """Write the states after a step if an entry is due; with the first step of an attempt, always."""
        if self._file is not None and step % self._every == 0:
            self.write(step, states)

    def write(self, step: int, states: StreamStates) -> None:
        """Write the states after a step."""
        try:
            self._write(_Entry(step=step, states=states))
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> BinaryIO:
        """The file at its end; of one that exists, a torn frame is cut off."""
        file = self._path.open("a+b", buffering=0)
        file.seek(0)
        content = file.read()
        if not content.startswith(MAGIC):
            file.truncate(0)
            file.write(MAGIC)
            return file
        *_, (end, self._before) = [(len(MAGIC), b""), *_frames(content)]
        file.truncate(end)
        return file

    def _write(self, value: Header | _Entry) -> None:
        if self._file is None:
            return
        content = json.dumps(value, separators=(",", ":"), sort_keys=True, default=str).encode()
        packer = zlib.compressobj(zdict=self._before[-_DICTIONARY_BYTES:])
        packed = packer.compress(content) + packer.flush()
        # One write, so that other processes never see the beginning of a frame for long.
        self._file.write(_FRAME.pack(len(packed), zlib.crc32(packed)) + packed)
        self._before = content

    def _give_up(self, error: OSError) -> None:
        log.warning("the ledger %s cannot be written (%s); `data trace` then takes longer", self._path, error)
        self.close()


def read_ledger(folder: Path) -> list[AttemptRecord]:
    """The attempts of a run, in their order, each with the entries of all ranks; empty if there is no ledger."""
    found: dict[tuple[int, int], AttemptRecord] = {}
    for path in sorted(folder.glob("*.ledger")):
        match = _NAME.match(path.name)
        if match is None:
            continue
        for value in _values(path):
            if "data" in value:
                # A process that trains a run again by itself does not count its attempts.
                key = int(match[1]), value["step"]
                found.setdefault(key, AttemptRecord(key[0], value))
            else:
                for stream, state in value["states"].items():
                    found[key].states.setdefault(int(stream), {})[value["step"]] = state
    return sorted(found.values(), key=lambda attempt: attempt.number)


def _values(path: Path) -> Iterator[Any]:
    try:
        content = path.read_bytes()
    except OSError:
        return
    for _, frame in _frames(content):
        value = json.loads(frame)
        if isinstance(value, dict) and isinstance(value.get("step"), int):
            yield value


def _frames(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The end and the content of each whole frame up to the first that is torn."""
    if not content.startswith(MAGIC):
        return
    at, before = len(MAGIC), b""
    while at + _FRAME.size <= len(content):
        length, checksum = _FRAME.unpack_from(content, at)
        packed = content[at + _FRAME.size : at + _FRAME.size + length]
        if len(packed) < length or zlib.crc32(packed) != checksum:
            return
        try:
            unpacker = zlib.decompressobj(zdict=before[-_DICTIONARY_BYTES:])
            before = unpacker.decompress(packed) + unpacker.flush()
        except zlib.error:
            return
        at += _FRAME.size + length
        yield at, before
