"""The parser of the runs table's query language: from text to a tree. Pure; `query_sql` converts the tree to SQL.

    state = running and recipe.zero.stage >= 2 and eval.loss < 3 or name ~ "gpt" and tag = x

`not` binds tightest, then `and`, then `or`; parentheses group. A single word is searched in names and ids.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from shardyard.errors import UsageError

OPERATORS = ("<=", ">=", "!=", "=", "<", ">", "~")
MOST_CHARACTERS = 2000
MOST_DEPTH = 40
_TOKEN = re.compile(
    r"""(?P<space>\s+)
    |(?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    |(?P<operator><=|>=|!=|==|=|<|>|~)
    |(?P<bracket>[(),])
    |(?P<word>[^\s"'()<>=!~,]+)""",
    re.VERBOSE,
)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_DURATION = re.compile(r"(\d+\.?\d*)(s|m|min|h|d|w)")
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800}

Value = str | float | bool | None


class QueryError(UsageError):
    """An invalid query. `position` counts characters from 0; `field` is the unknown field, if any, and `nearest` the
    most similar one."""

    def __init__(self, message: str, position: int, field: str | None = None, nearest: str | None = None) -> None:
        super().__init__(f"{message} (at character {position + 1})")
        self.position = position
        self.field = field
        self.nearest = nearest


@dataclass(frozen=True)
class Compare:
    """`field operator value`; `in` has several values."""

    field: str
    operator: str
    values: tuple[Value, ...]
    position: int


@dataclass(frozen=True)
class Search:
    """A search for text in names and ids."""

    text: str


@dataclass(frozen=True)
class Not:
    inner: Node


@dataclass(frozen=True)
class Both:
    left: Node
    right: Node


@dataclass(frozen=True)
class Either:
    left: Node
    right: Node


Node = Compare | Search | Not | Both | Either


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    position: int


def parse(text: str) -> Node | None:
    """The tree of a query; None for an empty one, which matches all runs.

    Raises:
        QueryError: it is invalid; says where and what was expected.
    """
    if len(text) > MOST_CHARACTERS:
        raise QueryError(f"the query has more than {MOST_CHARACTERS} characters", MOST_CHARACTERS)
    tokens = list(_tokens(text))
    if len(tokens) == 1:
        return None
    parser = _Parser(tokens)
    tree = parser.either(0)
    parser.expect_end()
    return tree


def _tokens(text: str) -> Iterator[_Token]:
    position = 0
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None:
            what = "a quote that is not closed" if text[position] in "\"'" else f"{text[position]!r} means nothing here"
            raise QueryError(what, position)
        if found.lastgroup != "space":
            yield _Token(str(found.lastgroup), found[0], position)
        position = found.end()
    yield _Token("end", "", len(text))


class _Parser:
    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._at = 0

    @property
    def _next(self) -> _Token:
        return self._tokens[self._at]

    def _take(self) -> _Token:
        token = self._next
        self._at = min(self._at + 1, len(self._tokens) - 1)
        return token

    def _is_word(self, word: str) -> bool:
        return self._next.kind == "word" and self._next.text.lower() == word

    def either(self, depth: int) -> Node:
        if depth > MOST_DEPTH:
            raise QueryError("too many brackets", self._next.position)
        tree = self._both(depth)
        while self._is_word("or"):
            self._take()
            tree = Either(tree, self._both(depth))
        return tree

    def _both(self, depth: int) -> Node:
        tree = self._single(depth)
        while self._is_word("and"):
            self._take()
            tree = Both(tree, self._single(depth))
        return tree

    def _single(self, depth: int) -> Node:
        token = self._next
        if self._is_word("not"):
            self._take()
            if depth > MOST_DEPTH:
                raise QueryError("too many `not`", token.position)
            return Not(self._single(depth + 1))
        if token.text == "(" and token.kind == "bracket":
            self._take()
            tree = self.either(depth + 1)
            self._expect(")")
            return tree
        return self._comparison()

    def _comparison(self) -> Node:
        token = self._take()
        if token.kind not in ("word", "text") or self._reserved(token):
            raise QueryError(f"expected a field, not {_shown(token)}", token.position)
        if token.kind == "word" and self._is_word("in"):
            self._take()
            return Compare(token.text, "in", self._list(), token.position)
        if self._next.kind != "operator":
            return Search(_unquoted(token))
        if token.kind == "text":
            raise QueryError("a field stands before an operator, not a text", token.position)
        operator = self._take().text.replace("==", "=")
        return Compare(token.text, operator, (self._value(),), token.position)

    def _list(self) -> tuple[Value, ...]:
        self._expect("(")
        values = [self._value()]
        while self._next.text == ",":
            self._take()
            values.append(self._value())
        self._expect(")")
        return tuple(values)

    def _value(self) -> Value:
        token = self._take()
        if token.kind == "text":
            return _unquoted(token)
        if token.kind != "word":
            raise QueryError(f"expected a value, not {_shown(token)}", token.position)
        return value_of(token.text)

    @staticmethod
    def _reserved(token: _Token) -> bool:
        return token.kind == "word" and token.text.lower() in ("and", "or", "in", "not")

    def _expect(self, bracket: str) -> None:
        token = self._take()
        if token.text != bracket or token.kind != "bracket":
            raise QueryError(f"expected {bracket!r}, not {_shown(token)}", token.position)

    def expect_end(self) -> None:
        if self._next.kind != "end":
            raise QueryError(f"expected `and`, `or` or the end, not {_shown(self._next)}", self._next.position)


def value_of(word: str) -> Value:
    """A bare word as a value: a number, a duration in seconds (`2h`), true, false, null, or the word itself."""
    if _NUMBER.fullmatch(word):
        return float(word)
    if (duration := _DURATION.fullmatch(word)) is not None:
        return float(duration[1]) * _SECONDS[duration[2]]
    constants: dict[str, Value] = {"true": True, "false": False, "null": None, "none": None}
    return constants.get(word.lower(), word)


def _unquoted(token: _Token) -> str:
    return re.sub(r"\\(.)", r"\1", token.text[1:-1], flags=re.DOTALL) if token.kind == "text" else token.text


def _shown(token: _Token) -> str:
    return "the end" if token.kind == "end" else repr(token.text)
