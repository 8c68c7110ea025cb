"""The maps that change documents, and where they leave them alone."""

from __future__ import annotations

from typing import Any

import pytest

from shardyard.data.filters.steps import make_step
from shardyard.recipe.sections.filters import Step


def mapped(step: dict[str, Any], text: str) -> object:
    return make_step(Step.model_validate(step), lambda _: ())(text)


@pytest.mark.parametrize(
    ("step", "text", "expected"),
    [
        (None, "Cafe\u0301", "Café"),
        (None, "a\x00b\u200bc\ufeff\td\n", "abc\td\n"),
        ({"form": "NFKC"}, "ﬁ ½", "fi 1⁄2"),
        ({"form": None, "control_characters": False}, "e\u0301\x00", "e\u0301\x00"),
        # Emoji of several characters stay whole.
        (None, "👩\u200d💻", "👩\u200d💻"),
    ],
)
def test_unicode(step: dict[str, Any] | None, text: str, expected: str) -> None:
    assert mapped({"unicode": step}, text) == expected


@pytest.mark.parametrize(
    ("step", "text", "expected"),
    [
        (None, "a \t\r\nb\rc\u2028d  \n", "a\nb\nc\nd"),
        (None, "a\n \n\t\n\nb", "a\n\nb"),
        (None, "def f():\n    return  1", "def f():\n    return  1"),
        ({"spaces": True}, "  a \t b\n\t c", "a b\nc"),
        ({"blank_lines": None}, "a\n\n\n\nb", "a\n\n\n\nb"),
        ({"blank_lines": 0}, "a\n\n\nb", "a\nb"),
    ],
)
def test_whitespace(step: dict[str, Any] | None, text: str, expected: str) -> None:
    assert mapped({"whitespace": step}, text) == expected


def test_lowercase() -> None:
    assert mapped({"lowercase": None}, "ÄRGER Straße") == "ärger straße"


@pytest.mark.parametrize(
    ("step", "text", "expected"),
    [
        (None, "Mail to jo.doe+x@mail.example.co.uk.", "Mail to email@example.com."),
        (None, "'jo@example.org' and `a.b@example.org`", "'email@example.com' and `email@example.com`"),
        (None, "``@dataclasses.dataclass``", "``@dataclasses.dataclass``"),
        (None, "@decorator and user@localhost", "@decorator and user@localhost"),
        (None, "a = b@c.T", "a = b@c.T"),
        (None, "from 8.8.8.8, port 53", "from 192.0.2.1, port 53"),
        (None, "version 1.2.3.4.5 and 300.1.1.1", "version 1.2.3.4.5 and 300.1.1.1"),
        (None, "127.0.0.1 and 10.0.0.7 and ::1", "127.0.0.1 and 10.0.0.7 and ::1"),
        ({"private_addresses": True}, "127.0.0.1, ::1", "192.0.2.1, 192.0.2.1"),
        (None, "at 2a00:1450:4001:81b::200e or 12:30:45", "at 192.0.2.1 or 12:30:45"),
        (None, "std::vector a::b dead::beef", "std::vector a::b dead::beef"),
        ({"mail": None}, "jo@example.org 8.8.8.8", "jo@example.org 192.0.2.1"),
        ({"ip": None, "mail": "\\1"}, "jo@example.org 8.8.8.8", "\\1 8.8.8.8"),
    ],
)
def test_mask(step: dict[str, Any] | None, text: str, expected: str) -> None:
    assert mapped({"mask": step}, text) == expected
