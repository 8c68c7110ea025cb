"""The process of a reader: it makes parts of batches until the process that started it wants no more, or ends."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import socket
import sys
import threading
import traceback
from dataclasses import replace

import torch

from shardyard.data.readers import wire
from shardyard.data.readers.crew import AHEAD, Failure
from shardyard.data.readers.part import Part
from shardyard.data.readers.processes import Order
from shardyard.errors import DataError, ShardyardError, UnavailableError

log = logging.getLogger(__name__)


def main() -> None:
    """Read the order from the socket whose number is the first argument, and send parts."""
    # A terminal sends Ctrl-C to all its processes. The rank may need batches until it has saved; this one ends with it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    with socket.socket(fileno=int(sys.argv[1])) as parent:
        order: Order = wire.receive(parent)
        wanted = threading.Semaphore(AHEAD)
        threading.Thread(target=_listen, args=(parent, wanted), daemon=True).start()
        _make(order, parent, wanted)
        # What was sent is read before this process may end.
        threading.Event().wait()


def _make(order: Order, parent: socket.socket, wanted: threading.Semaphore) -> None:
    row, streams = order.first, None
    try:
        loader = order.make()
        if order.states is not None:
            loader.load_state(order.states)
        streams, size_at, retries = loader.readings(order.reader, order.readers)
        while True:
            wanted.acquire()
            count = size_at(row)
            part = replace(streams.part(row, count), num_retries=retries())
            row += count
            _deliver(parent, part)
    except BaseException as error:  # noqa: BLE001 - raised by the rank
        _deliver(parent, Failure(streams.at if streams is not None else row, _sendable(error)))


def _deliver(parent: socket.socket, made: Part | Failure) -> None:
    try:
        if wire.send(parent, made):
            log.warning("this host has no shared memory (memfd) for batches; they go through a socket, more slowly")
    except OSError:
        os._exit(0)  # Nobody listens.


def _sendable(error: BaseException) -> BaseException:
    """The error as it can be pickled, with its place unless it is told in words."""
    if isinstance(error, MemoryError):
        return UnavailableError("a reader of the data found no more memory; lower data.readers or data.shuffle_window.")
    if not isinstance(error, ShardyardError):
        error.add_note("in a reader of the data:\n" + "".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - whatever an exception's own code raises
        told = f"a reader of the data failed with {type(error).__name__}: {error}"
        return DataError(told) if isinstance(error, ShardyardError) else RuntimeError(told)
    return error


def _listen(parent: socket.socket, wanted: threading.Semaphore) -> None:
    """Count what was taken; end with the other side, whatever this process is doing."""
    try:
        while taken := parent.recv(64):
            wanted.release(len(taken))
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
