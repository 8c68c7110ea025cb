"""How tests wait: for a state, with a limit that a slow and busy machine does not reach."""

from __future__ import annotations

import ast
import itertools
import os

import pytest

from support.sleeps import faults
from support.waiting import next_second, read_until, settled, until


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("time.sleep(1)", "sleeps"),
        ("def f():\n  sleep(0.1)", "sleeps"),
        ("async def f():\n  await anyio.sleep(20)", "sleeps"),
        ("page.wait_for_timeout(200)", "sleeps"),
        ("end = time.monotonic() + 60", "keeps a deadline"),
        ("end = 60 + monotonic()", "keeps a deadline"),
    ],
)
def test_every_kind_of_fault_is_found(text: str, what: str) -> None:
    assert [kind for _, _, kind in faults(ast.parse(text))] == [what]


def test_until_gives_what_it_waited_for_and_tells_what_never_came() -> None:
    values = iter(["", "", "here"])
    assert until(lambda: next(values), "a value", every=0.001) == "here"
    with pytest.raises(AssertionError, match="after 0 s still not: a value"):
        until(lambda: False, "a value", seconds=0.01, every=0.001)
    looks: list[int] = []
    with pytest.raises(AssertionError, match=r"still not: \[1"):
        until(lambda: looks.append(1), lambda: looks, seconds=0.01, every=0.001)


def test_a_value_settles_once_it_stays_the_same() -> None:
    values = itertools.chain([1, 2, 2, 3], itertools.repeat(4))
    assert settled(lambda: next(values), "the value", pause=lambda seconds: None) == 4
    assert next_second() is None


def test_a_terminal_is_read_until_it_is_enough_or_closed() -> None:
    ours, theirs = os.openpty()
    os.write(theirs, b"one two")
    assert "two" in read_until(ours, lambda seen: "two" in seen)
    os.close(theirs)
    assert read_until(ours, lambda seen: False) == ""
    os.close(ours)
    ours, theirs = os.openpty()
    with pytest.raises(AssertionError, match="still not"):
        read_until(ours, lambda seen: False, seconds=0.01)
