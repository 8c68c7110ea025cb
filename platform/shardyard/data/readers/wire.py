"""Objects with arrays between two processes of a host: pickled over a socket, large arrays in shared memory.

The memory is anonymous (memfd): it ends with the last process that holds it, however that ends, and the size of
/dev/shm does not limit it. Where there is none, arrays go through the socket.
"""

from __future__ import annotations

import mmap
import os
import pickle
import socket
import struct
from collections.abc import Sequence
from typing import Any

# Less than this is not worth a mapping.
SHARED_BYTES = 1 << 16
_ALIGNMENT = 64
# Of a message: the length of the pickle, the number of buffers, and whether they are in shared memory.
_HEAD = struct.Struct("<QQ?")


class EndedError(EOFError):
    """The other side has ended."""


def send(to: socket.socket, value: object, *, shared: bool = True) -> bool:
    """Send an object.

    Args:
        shared: put arrays into shared memory, if they are large and there is any.

    Returns:
        Whether shared memory was wanted and could not be had.
    """
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    views = [buffer.raw() for buffer in buffers]
    sizes = struct.pack(f"<{len(views)}Q", *(view.nbytes for view in views))
    large = shared and sum(view.nbytes for view in views) >= SHARED_BYTES
    descriptor = _in_memory(views) if large else None
    head = _HEAD.pack(len(pickled), len(views), descriptor is not None) + sizes
    if descriptor is None:
        to.sendall(head + pickled)
        for view in views:
            to.sendall(view)
        return large
    try:
        # A first byte of its own carries the descriptor.
        socket.send_fds(to, [b"\1"], [descriptor])
        to.sendall(head + pickled)
    finally:
        os.close(descriptor)
    return False


def receive(source: socket.socket) -> Any:
    """The next object. Its arrays may be changed: they are not shared with the sender any more.

    Raises:
        EndedError: the sender has ended.
    """
    first, descriptors, _, _ = socket.recv_fds(source, 1, 1)
    if not first:
        raise EndedError
    rest = _exactly(source, _HEAD.size - (0 if descriptors else 1))
    length, count, in_memory = _HEAD.unpack(rest if descriptors else first + rest)
    sizes = struct.unpack(f"<{count}Q", _exactly(source, 8 * count))
    pickled = _exactly(source, length)
    if not in_memory:
        return pickle.loads(pickled, buffers=[bytearray(_exactly(source, size)) for size in sizes])
    try:
        memory = memoryview(mmap.mmap(descriptors[0], 0, access=mmap.ACCESS_COPY))
    finally:
        os.close(descriptors[0])
    return pickle.loads(
        pickled, buffers=[memory[at : at + size] for at, size in zip(_places(sizes), sizes, strict=True)]
    )


def _in_memory(views: Sequence[memoryview]) -> int | None:
    """The descriptor of a memory that holds the buffers; None if there is none."""
    create = getattr(os, "memfd_create", None)
    if create is None:
        return None
    sizes = [view.nbytes for view in views]
    places = _places(sizes)
    try:
        descriptor: int = create("shardyard-part")
    except OSError:
        return None
    try:
        os.ftruncate(descriptor, places[-1] + sizes[-1])
        for place, view in zip(places, views, strict=True):
            while view.nbytes:
                written = os.pwrite(descriptor, view, place)
                place, view = place + written, view[written:]
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _places(sizes: Sequence[int]) -> list[int]:
    places, at = [], 0
    for size in sizes:
        places.append(at)
        at += -(-size // _ALIGNMENT) * _ALIGNMENT
    return places


def _exactly(source: socket.socket, count: int) -> bytearray:
    data, done = bytearray(count), 0
    view = memoryview(data)
    while done < count:
        received = source.recv_into(view[done:])
        if not received:
            raise EndedError
        done += received
    return data
