"""Reading YAML 1.2 text as plain values with their line numbers.

This reads the node graph instead of a constructor's result: the graph has the line of every key and both lines of a
duplicate, and aliases can be counted before they are expanded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, DocumentStartEvent, ScalarEvent
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.parser import Parser
from ruamel.yaml.reader import ReaderError

from shardyard.errors import Problem, RecipeError
from shardyard.recipe.fields import Path as FieldPath
from shardyard.recipe.fields import dotted
from shardyard.recipe.renamed import RENAMED, current_name, with_current_names

MAX_BYTES = 1 << 20
MAX_NODES = 10_000
MAX_DEPTH = 40
MAX_ALIASES = 100
_TAG = "tag:yaml.org,2002:"


@dataclass
class Document:
    """Plain data of one file, under the current names of fields.

    `places` has the position (`file:line`) of each path's key, `renamed` the position of each old field name.
    """

    data: dict[str, object]
    places: dict[FieldPath, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    text: str = ""
    renamed: dict[str, str] = field(default_factory=dict)


def read_document(path: Path, shown: str) -> Document:
    """Read a recipe file, which messages call `shown`.

    Raises:
        RecipeError: the file cannot be read, is not YAML text, or is not a mapping.
    """
    text = _read_text(path, shown)
    node = _compose(text, shown)
    if node is None:
        raise _refuse(shown, "is empty; a recipe needs at least name, model, data, train and optimizer")
    if not isinstance(node, MappingNode):
        kind = "a list" if isinstance(node, SequenceNode) else "a single value"
        raise _refuse(f"{shown}:{node.start_mark.line + 1}", f"holds {kind} where a recipe is a mapping of keys")
    document = Document({}, text=text)
    _Builder(shown, document).fill(node)
    _use_current_names(document)
    return document


def _use_current_names(document: Document) -> None:
    document.data = dict(with_current_names(document.data))
    for old, new in RENAMED.items():
        _move(document, old, tuple(old.split(".")), tuple(new.split(".")))
    for section in ("parameters", "overrides"):  # A sweep uses fields of its recipe as keys.
        fields = document.data.get(section)
        if isinstance(fields, dict) and not fields.keys().isdisjoint(RENAMED):
            document.data[section] = {current_name(name): value for name, value in fields.items()}
            for old in fields.keys() & RENAMED.keys():
                _move(document, old, (section, old), (section, RENAMED[old]))


def _move(document: Document, old: str, before: FieldPath, now: FieldPath) -> None:
    if before not in document.places or now in document.places:
        return
    document.renamed[old] = document.places[before]
    for length in range(1, len(now)):  # A field may have moved into a section that the file does not have.
        document.places.setdefault(now[:length], document.places[before])
    for place in [place for place in document.places if place[: len(before)] == before]:
        document.places[(*now, *place[len(before) :])] = document.places.pop(place)


def parse_value(text: str) -> Any:
    """One value as in a recipe: `1e-3` → 0.001, `[1, 2]` → a list, nothing → None.

    Raises:
        ValueError: the text is not a YAML value.
    """
    try:
        node = _compose(text, "value")
        if node is None:
            return None
        document = Document({})
        value = _Builder("value", document).build(node, ())
    except RecipeError as error:
        raise ValueError(error.problems[0].message) from error
    if document.problems:
        raise ValueError(document.problems[0].message)
    return value


def _refuse(where: str, message: str) -> RecipeError:
    return RecipeError(where.rpartition(":")[0] or where, [Problem(where, "", message)])


def _read_text(path: Path, shown: str) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise _refuse(shown, f"cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_BYTES:
        raise _refuse(shown, "is larger than 1 MiB; a recipe is a few KiB of YAML, so this is another file")
    if b"\0" in data:
        raise _refuse(shown, f"is a binary file (a zero byte at offset {data.index(0)}); a recipe is YAML text")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"is not UTF-8 text (byte 0x{data[error.start]:02x} at offset {error.start}); save it as UTF-8"
        raise _refuse(f"{shown}:{line}", message) from error


def _compose(text: str, shown: str) -> Node | None:
    try:
        yaml = YAML(typ="safe", pure=True)
        yaml.Parser = partial(_Limited, shown=shown)
        node: Node | None = yaml.compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{shown}:{mark.line + 1}" if mark is not None else shown
        raise _refuse(where, _syntax_message(error, text)) from error
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise _refuse(f"{shown}:{line}", f"holds the control character {error.character!r}; remove it") from error
    except (YAMLError, ValueError, IndexError, AttributeError, AssertionError) as error:
        # ruamel.yaml reports most malformed text as YAMLError; a few escapes raise these exceptions.
        raise _refuse(shown, f"is not valid YAML: {' '.join(str(error).split())}") from error
    return node


def _syntax_message(error: MarkedYAMLError, text: str) -> str:
    mark = error.problem_mark
    line = text.split("\n")[mark.line] if mark is not None and mark.line < text.count("\n") + 1 else ""
    if "\\t" in str(error.problem) or "\t" in line[: len(line) - len(line.lstrip())]:
        return "has a tab where YAML wants spaces; indent with spaces"
    message = " ".join(part for part in (error.context, error.problem) if part)
    return f"is not valid YAML: {' '.join(message.split())}"


class _Limited(Parser):
    """Events of one YAML text; refuses malicious input at the first sign."""

    def __init__(self, loader: Any, shown: str) -> None:
        super().__init__(loader)
        self.shown = shown
        self.nodes = self.depth = self.aliases = self.documents = 0

    def get_event(self) -> Any:
        event = super().get_event()
        if isinstance(event, DocumentStartEvent):
            self.documents += 1
            if event.version or event.tags:
                raise self._refusal(event, "has a % directive; recipes are plain YAML 1.2, so remove it")
            if self.documents > 1:
                raise self._refusal(event, "starts a second document (---); one file holds one recipe")
        elif isinstance(event, AliasEvent):
            self.aliases += 1
        elif isinstance(event, CollectionStartEvent):
            self.depth += 1
        elif isinstance(event, CollectionEndEvent):
            self.depth -= 1
        self.nodes += isinstance(event, ScalarEvent | CollectionStartEvent)
        if self.aliases > MAX_ALIASES or self.nodes > MAX_NODES or self.depth > MAX_DEPTH:
            limit = f"{MAX_NODES} values, {MAX_DEPTH} levels or {MAX_ALIASES} aliases"
            raise self._refusal(event, f"is more than {limit}; no recipe needs that")
        return event

    def _refusal(self, event: Any, message: str) -> RecipeError:
        return _refuse(f"{self.shown}:{event.start_mark.line + 1}", message)


def _tag_message(node: Node) -> str:
    return f"the tag {str(node.tag).replace(_TAG, '!!')} is not supported; write a plain value"


class _Builder:
    """Turns nodes into plain values and collects their positions and all problems."""

    def __init__(self, shown: str, document: Document) -> None:
        self.shown = shown
        self.document = document
        self.values = 0
        self.open: set[int] = set()
        self.constructor = YAML(typ="safe", pure=True).constructor

    def fill(self, node: MappingNode) -> None:
        self.document.data = self.mapping(node, ())

    def complain(self, node: Node, path: FieldPath, message: str) -> None:
        self.document.problems.append(Problem(self.where(node), dotted(path), message))

    def where(self, node: Node) -> str:
        return f"{self.shown}:{node.start_mark.line + 1}"

    def build(self, node: Node, path: FieldPath) -> Any:
        self.values += 1
        if self.values > MAX_NODES:
            raise _refuse(self.where(node), f"expands through aliases to more than {MAX_NODES} values")
        if isinstance(node, ScalarNode):
            return self.scalar(node, path)
        if id(node) in self.open:
            raise _refuse(self.where(node), "contains itself through an alias")
        if str(node.tag) not in (f"{_TAG}map", f"{_TAG}seq"):
            self.complain(node, path, _tag_message(node))
        self.open.add(id(node))
        try:
            if isinstance(node, MappingNode):
                return self.mapping(node, path)
            return self.sequence(node, path)
        finally:
            self.open.discard(id(node))

    def sequence(self, node: Node, path: FieldPath) -> list[Any]:
        values = []
        for index, item in enumerate(node.value):
            self.document.places[(*path, index)] = self.where(item)
            values.append(self.build(item, (*path, index)))
        return values

    def mapping(self, node: MappingNode, path: FieldPath) -> dict[str, object]:
        values: dict[str, object] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            key = self.key(key_node, path)
            if key is None:
                continue
            line = key_node.start_mark.line + 1
            if key in lines:
                message = f"the key is given twice, on lines {lines[key]} and {line}; keep one"
                self.complain(key_node, (*path, key), message)
                continue
            lines[key] = line
            self.document.places[(*path, key)] = self.where(key_node)
            values[key] = self.build(value_node, (*path, key))
        return values

    def key(self, node: Node, path: FieldPath) -> str | None:
        if isinstance(node, ScalarNode) and str(node.tag) == f"{_TAG}str":
            return self.text(node, path)
        if str(node.tag) == f"{_TAG}merge":
            self.complain(node, path, "merge keys (<<) are not part of YAML 1.2; use `extends` or repeat the keys")
        else:
            shown = f" {node.value}" if isinstance(node, ScalarNode) else ""
            self.complain(node, path, f"the key{shown} is not text; put it in quotes")
        return None

    def text(self, node: ScalarNode, path: FieldPath) -> str:
        """The text of a node, which must be encodable: an escape such as \\ud800 alone is not a character."""
        text = str(node.value)
        if any("\ud800" <= character <= "\udfff" for character in text):
            self.complain(
                node, path, "holds half of a surrogate pair, which is not a valid character; write \\U and 8 digits"
            )
            return text.encode("utf-8", "replace").decode()
        return text

    def scalar(self, node: ScalarNode, path: FieldPath) -> Any:
        kind = str(node.tag).removeprefix(_TAG)
        if kind in ("str", "timestamp"):
            return self.text(node, path)
        if kind == "null":
            return None
        if kind not in ("int", "float", "bool"):
            self.complain(node, path, _tag_message(node))
            return str(node.value)
        try:
            value = self.constructor.construct_object(node)
        except (YAMLError, ValueError, KeyError, IndexError, OverflowError):
            self.complain(node, path, f"{str(node.value)[:40]!r} is not a number; put text in quotes")
            return str(node.value)
        if isinstance(value, float) and not math.isfinite(value):
            self.complain(node, path, f"{node.value} is not a finite number")
        if isinstance(value, int) and abs(value) >= 2**63:
            self.complain(node, path, f"{str(node.value)[:24]}… is too large; whole numbers have at most 63 bits")
        return value
