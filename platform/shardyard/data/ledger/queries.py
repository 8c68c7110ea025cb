"""Documents that are looked for: by file and row, by the hash of their content, or by what they say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shardyard.data.ledger.documents import content_hash, searched_text, words_of
from shardyard.data.ledger.places import Place, Places, ReadDocument
from shardyard.data.sources.sources import Example
from shardyard.errors import UsageError

_HASH = re.compile(r"^(?:sha256:([0-9a-f]{8,64})|([0-9a-f]{64}))$", re.IGNORECASE)
_PLACE = re.compile(r"^(?P<file>[^\n]+?)(?::|, row )(?P<row>[1-9]\d*)$")
_PATTERN = re.compile(r"^/(?P<pattern>.+)/(?P<flags>i?)$", re.DOTALL)


@dataclass(frozen=True)
class Query:
    """One document, or several, that are looked for; one of the fields is set besides `text`, what was given.

    sha256: the beginning of the hash. place: file and row. pattern: occurs in the text. phrase: is part of the text.
    values: of columns or roles, all equal.
    """

    text: str
    sha256: str | None = None
    place: tuple[str, int] | None = None
    pattern: re.Pattern[str] | None = None
    phrase: str | None = None
    values: Mapping[str, object] | None = None

    def matches(self, read: ReadDocument, roles: Mapping[str, str]) -> bool:
        """Whether a document is one of those, by its content. `roles` maps role → column."""
        example = read.example
        if self.sha256 is not None:
            return content_hash(example).startswith(self.sha256)
        if self.pattern is not None:
            return self.pattern.search(searched_text(example)) is not None
        if self.phrase is not None:
            return self.phrase in searched_text(example)
        return self.values is not None and _agrees(self.values, read.columns, roles)


@dataclass(frozen=True)
class FoundDocument:
    """A document that a query found: `number` in the shard of its place.

    is_kept_out: it is not trained on, because it is held out, excluded or removed by data.filters.
    """

    place: Place
    number: int
    source: str
    sha256: str
    words: str
    is_kept_out: bool


def parse_query(text: str) -> Query:
    """A query as people write it: `FILE:ROW`, `sha256:HEX`, `/pattern/`, a JSON object, or else a part of the text.

    A JSON object holds `file` and `row`, or `sha256`, or values of the document's columns.

    Raises:
        UsageError: it is empty, no valid JSON, or no valid regular expression.
    """
    text = text.strip()
    if not text:
        raise UsageError("a document is named by FILE:ROW, sha256:HEX, /pattern/, a JSON object or a part of its text.")
    if text.startswith("{"):
        return _of_json(text)
    if match := _HASH.match(text):
        return Query(text, sha256=(match[1] or match[2]).lower())
    if match := _PATTERN.match(text):
        try:
            return Query(text, pattern=re.compile(match["pattern"], re.IGNORECASE if match["flags"] else 0))
        except re.error as error:
            raise UsageError(f"{text} is no regular expression: {error}.") from error
    if match := _PLACE.match(text):
        return Query(text, place=(match["file"], int(match["row"])), phrase=text)
    return Query(text, phrase=text)


def read_list(path: Path) -> list[Query]:
    """The queries of a file, one a line; empty lines and those that begin with # are left out.

    Raises:
        UsageError: the file cannot be read, names nothing, or a line is no query.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as a list of documents: {error}") from error
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                found.append(parse_query(line))
            except UsageError as error:
                raise UsageError(f"{path}, line {number}: {error}") from error
    if not found:
        raise UsageError(f"{path} names no document; write one a line: FILE:ROW, sha256:HEX, JSON or text.")
    return found


def find_documents(queries: Sequence[Query], places: Sequence[Places]) -> dict[int, list[FoundDocument]]:
    """Index of a query → the documents that it names, in the order of the sources. Sources are read once, and only if a
    query asks for their content."""
    found: dict[int, list[FoundDocument]] = {index: [] for index in range(len(queries))}
    by_content = dict(enumerate(queries))
    for index, query in enumerate(queries):
        if query.place is not None:
            found[index] = [document for place in places for document in _at(query.place, place)]
            if found[index] or Path(query.place[0]).suffix:
                del by_content[index]
    if not by_content:
        return found
    for place in places:
        roles = place.source.columns
        for where, number, read in place.scan():
            hits = [index for index, query in by_content.items() if query.matches(read, roles)]
            if hits:
                document = _found(where, number, place, read)
                for index in hits:
                    found[index].append(document)
    return found


def _at(wanted: tuple[str, int], places: Places) -> Iterator[FoundDocument]:
    for place, number in places.find(*wanted):
        read = places.read(place.shard, number)
        if read is not None:
            yield _found(place, number, places, read)


def _found(place: Place, number: int, places: Places, read: ReadDocument) -> FoundDocument:
    name, example = places.source.name, read.example
    return FoundDocument(place, number, name, content_hash(example), words_of(example), places.is_kept_out(read))


def _of_json(text: str) -> Query:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{text[:80]} is no valid JSON: {error}") from error
    if isinstance(value.get("sha256"), str):
        return Query(text, sha256=value["sha256"].lower())
    if isinstance(value.get("file"), str) and isinstance(value.get("row"), int):
        return Query(text, place=(value["file"], value["row"]))
    return Query(text, values=value)


def _agrees(values: Mapping[str, object], columns: Example, roles: Mapping[str, str]) -> bool:
    """Whether all values that the objective reads are equal; at least one must be."""
    own: Mapping[str, object] = {"text": columns} if isinstance(columns, str) else columns
    known = {**own, **{column: own[role] for role, column in roles.items() if role in own}}
    shared = [name for name in values if name in known]
    return bool(shared) and all(values[name] == known[name] for name in shared)
