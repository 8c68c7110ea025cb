"""The bounded queue: in items, in bytes, and closed."""

from __future__ import annotations

import threading

import pytest

from shardyard.data.readers.shelf import Closed, Shelf
from support.waiting import PATIENCE_SECONDS, until


def in_thread(shelf: Shelf[int], items: list[tuple[int, int]]) -> threading.Thread:
    def put() -> None:
        try:
            for item, size in items:
                shelf.put(item, size)
        except Closed:
            return

    thread = threading.Thread(target=put, daemon=True)
    thread.start()
    return thread


def test_items_keep_their_order_within_the_bounds() -> None:
    shelf: Shelf[int] = Shelf(3, 10)
    thread = in_thread(shelf, [(1, 4), (2, 4), (3, 4), (4, 1), (5, 1)])
    until(lambda: shelf.full(4), "two of four bytes")
    assert not shelf.full(2)  # A third would fit if it were small.
    assert [shelf.get() for _ in range(5)] == [1, 2, 3, 4, 5]
    thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()


def test_one_item_fits_however_large() -> None:
    shelf: Shelf[int] = Shelf(3, 10)
    shelf.put(1, 1000)
    assert shelf.full()
    assert shelf.get() == 1
    assert not shelf.full(1000)


def test_closing_ends_waits_and_drops_items() -> None:
    shelf: Shelf[int] = Shelf(1)
    thread = in_thread(shelf, [(1, 0), (2, 0)])
    until(shelf.full, "the first item")
    shelf.close()
    thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()
    with pytest.raises(Closed):
        shelf.get()
    with pytest.raises(Closed):
        shelf.put(3)
