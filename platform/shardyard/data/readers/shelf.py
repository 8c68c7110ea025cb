"""A queue between two threads that is bounded in items and in bytes."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Closed(Exception):  # noqa: N818 - no error: nothing more is wanted
    """The shelf is closed."""


class Shelf(Generic[Item]):
    """Items in their order. One item always fits, however large it is.

    Args:
        most: number of items.
        most_bytes: of all items together; None for no limit.
    """

    def __init__(self, most: int, most_bytes: int | None = None) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._items: deque[tuple[Item, int]] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._is_closed = False

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    def full(self, num_bytes: int = 0) -> bool:
        """Whether an item of this size has to wait."""
        too_large = self._most_bytes is not None and self._bytes + num_bytes > self._most_bytes
        return len(self._items) >= self._most or (too_large and bool(self._items))

    def put(self, item: Item, num_bytes: int = 0) -> None:
        """Add an item, once there is room.

        Raises:
            Closed: before or while waiting.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or not self.full(num_bytes))
            if self._is_closed:
                raise Closed
            self._items.append((item, num_bytes))
            self._bytes += num_bytes
            self._changed.notify_all()

    def get(self) -> Item:
        """Take the oldest item, once there is one.

        Raises:
            Closed: before or while waiting.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or bool(self._items))
            if self._is_closed:
                raise Closed
            item, num_bytes = self._items.popleft()
            self._bytes -= num_bytes
            self._changed.notify_all()
            return item

    def close(self) -> None:
        """Drop all items, and end every wait."""
        with self._changed:
            self._is_closed = True
            self._items.clear()
            self._changed.notify_all()
