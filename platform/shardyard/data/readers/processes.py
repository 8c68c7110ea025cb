"""Readers that are processes, for rows that are made in Python: threads would wait for each other.

Each reader opens the sources itself and has its own streams. It ends with the socket to the rank, so however the rank
ends, no reader outlives it.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar

from shardyard.data.readers import wire
from shardyard.data.readers.crew import Failure, gathered
from shardyard.data.readers.part import OwnStreams, Part
from shardyard.data.readers.shelf import Closed
from shardyard.data.stream.streams import StreamStates
from shardyard.errors import DataError, UnavailableError

ReaderKind = Literal["threads", "processes"]
Made = TypeVar("Made", bound=Callable[[], object])
END_SECONDS = 5.0
# A reader uses one core and no GPU.
_ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


class Loader(Protocol):
    """The part of `TrainLoader` that a reader needs."""

    def load_state(self, states_by_stream: StreamStates) -> None: ...
    def readings(self, reader: int, readers: int) -> tuple[OwnStreams, Callable[[int], int], Callable[[], int]]:
        """The streams of one reader, rows of a batch by its first row, and the number of retries."""


@dataclass(frozen=True)
class Order:
    """What a reader is to make: how to make the rank's loader, which reader of how many it is, and from where.

    `states` are those of the rank's streams before row `first`; None at the beginning.
    """

    make: Callable[[], Loader]
    reader: int
    readers: int
    first: int
    states: StreamStates | None


class ProcessReaders:
    """A process for each reader.

    Args:
        make: makes the rank's loader, without readers, in a reader; `in_processes` has checked that it can be pickled.
    """

    def __init__(self, make: Callable[[], Loader], readers: int) -> None:
        self._make, self._readers = make, readers
        self._children: list[_Child] = []

    @property
    def ids(self) -> list[int]:
        """The ids of the processes."""
        return [child.process.pid for child in self._children]

    def start(self, first: int, states: StreamStates) -> None:
        self._children = [_Child() for _ in range(self._readers)]
        for reader, child in enumerate(self._children):
            child.tell(Order(self._make, reader, self._readers, first, states if first else None))

    def next(self) -> list[Part]:
        return gathered([child.next for child in self._children])

    def finish(self) -> None:
        self.close()

    def close(self) -> None:
        for child in self._children:
            child.hang_up()
        for child in self._children:
            child.end()


def default_kind(rows: str) -> ReaderKind:
    """What readers are for rows of a format: the tokenizer of packed text releases the interpreter's lock."""
    return "threads" if rows == "packed" else "processes"


def in_processes(make: Made, readers: int, kind: ReaderKind) -> tuple[Made | None, str]:
    """How the loader is made in processes; None if rows are made by threads. And what people should know of it."""
    if not readers or kind == "threads":
        return None, ""
    try:
        pickle.dumps(make)
    except Exception as error:  # noqa: BLE001 - whatever a plugin raises
        return None, (
            f"the readers of the data are threads, which wait for each other: what makes the rows cannot be handed to "
            f"another process ({type(error).__name__}: {error})"
        )
    return make, ""


@dataclass
class _Child:
    """One process, and the rank's end of the socket between them."""

    process: subprocess.Popen[bytes] = field(init=False)
    socket: socket.socket = field(init=False)
    is_closed: bool = False

    def __post_init__(self) -> None:
        self.socket, theirs = socket.socketpair()
        path = os.pathsep.join(dict.fromkeys(entry for entry in sys.path if entry))
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "shardyard.data.readers.child", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": path},
                pass_fds=[theirs.fileno()],
            )

    def tell(self, order: Order) -> None:
        with contextlib.suppress(OSError):  # The first `next` says how it ended.
            wire.send(self.socket, order, shared=False)

    def next(self) -> Part | Failure:
        """The next part.

        Raises:
            Closed: this side closed the socket.
            DataError: the process ended.
        """
        try:
            made: Part | Failure = wire.receive(self.socket)
        except (wire.EndedError, OSError) as error:
            if self.is_closed:
                raise Closed from None
            raise self._ended() from error
        with contextlib.suppress(OSError):
            self.socket.send(b"\0")
        return made

    def hang_up(self) -> None:
        self.is_closed = True
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.socket.close()

    def _ended(self) -> DataError:
        code = self.process.wait()
        if code >= 0:
            return DataError(
                f"a reader of the data ended with exit code {code}; the log has its last words. data.readers: 0 makes "
                "the rows without further processes."
            )
        return UnavailableError(
            f"a reader of the data was ended by signal {-code} ({signal.Signals(-code).name}): perhaps the host ran "
            "out of memory. Lower data.readers or data.shuffle_window, or give the workers more memory."
        )
