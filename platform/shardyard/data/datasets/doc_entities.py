"""python-doc-entities: sentences of Python's documentation, in which names of code are tagged by their kind.

The sources mark each name by a role (`:func:`, `:mod:`, …), which becomes a tag; the text itself keeps only the name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from shardyard.data.datasets.rows import Converted, Row, mixed
from shardyard.data.datasets.splits import is_held_out, words

HELD_OUT_PERCENT = 8.0
KINDS = ("CLASS", "DATA", "EXCEPTION", "FUNCTION", "MODULE", "TERM")
TAGS = ("O", *(f"{prefix}-{kind}" for kind in KINDS for prefix in "BI"))
LENGTHS = range(5, 81)
# Sentences without names are common; this share of them is kept.
PLAIN_PERCENT = 25.0
_FOLDERS = ("faq", "howto", "library", "reference", "tutorial", "whatsnew")
_KIND_OF_ROLE = {
    "class": "CLASS",
    "attr": "DATA",
    "const": "DATA",
    "data": "DATA",
    "exc": "EXCEPTION",
    "func": "FUNCTION",
    "meth": "FUNCTION",
    "mod": "MODULE",
    "term": "TERM",
}
# A role with its text, a literal, emphasis, or a reference.
_MARKUP = re.compile(
    r":(?P<role>[a-z]+(?::[a-z]+)?):`(?P<text>[^`]+)`|``(?P<literal>[^`]+)``|\*\*?(?P<stress>[^*\s][^*]*?)\*\*?(?!\w)"
    r"|`(?P<link>[^`]+)`_{0,2}"
)
_TARGET = re.compile(r"\s*<[^>]*>$")
_WORD = re.compile(r"\w+|[^\w\s]")
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z:`*])")
_BULLET = re.compile(r"^(?:[*\-+]|\d+\.|#\.) +")
# Directives whose bodies are not prose.
_VERBATIM = re.compile(r"\.\. (?:code|doctest|index|literalinclude|parsed-literal|productionlist|testcode|toctree)")
# Beginnings of what is not prose: directives, tables, headings, prompts, list markers of definitions.
_NOT_PROSE = re.compile(r"\.\. |\* - |\+[-=]|[=\-~^\"*#+|]{3,}|>>>|\||:[a-z]+:? |\$ ")


def convert(folders: Mapping[str, Path]) -> Converted:
    """One row per sentence; whole pages are held out, and a sentence that several pages share is kept once."""
    (root,) = folders["python3.11-doc"].glob("usr/share/doc/python3.11/html/_sources")
    splits: dict[str, list[Row]] = {"train": [], "validation": []}
    seen: set[str] = set()
    for folder in _FOLDERS:
        for path in sorted((root / folder).rglob("*.rst.txt")):
            page = f"{folder}/{path.name.removesuffix('.rst.txt')}"
            split = "validation" if is_held_out(page, HELD_OUT_PERCENT) else "train"
            for tokens, tags in read_sentences(path.read_text(encoding="utf-8")):
                key = " ".join(words(" ".join(tokens)))
                if key not in seen and (any(tags) or is_held_out(key, PLAIN_PERCENT)):
                    splits[split].append({"tokens": tokens, "tags": tags, "page": page})
                seen.add(key)
    return Converted({split: mixed(rows, split) for split, rows in splits.items()}, {"tags": TAGS})


def read_sentences(rst: str) -> Iterator[tuple[list[str], list[int]]]:
    """Words and tags of the sentences of a page."""
    for paragraph in _paragraphs(rst):
        for sentence in _SENTENCE.split(paragraph):
            tokens, tags = _tagged(sentence)
            if len(tokens) in LENGTHS:
                yield tokens, tags


def _paragraphs(rst: str) -> Iterator[str]:
    """Prose without headings, directives and literal blocks."""
    literal: int | None = None
    for block in re.split(r"\n\s*\n", rst.expandtabs()):
        lines = [line for line in block.splitlines() if line.strip()]
        if not lines:
            continue
        indent = min(len(line) - len(line.lstrip()) for line in lines)
        if literal is not None and indent > literal:
            continue
        literal = None
        text = " ".join(line.strip() for line in lines)
        if _VERBATIM.match(text):
            literal = indent
        elif text.endswith("::") and not text.startswith(".. "):
            literal, text = indent, text.removesuffix("::") + "."
        if not any(_NOT_PROSE.match(line.strip()) for line in lines):
            yield _BULLET.sub("", text)


def _tagged(sentence: str) -> tuple[list[str], list[int]]:
    tokens: list[str] = []
    tags: list[int] = []
    at = 0
    for match in _MARKUP.finditer(sentence):
        _add(tokens, tags, sentence[at : match.start()])
        kind = _KIND_OF_ROLE.get((match["role"] or "").removeprefix("py:"))
        shown = match["text"] or match["literal"] or match["stress"] or match["link"]
        _add(tokens, tags, _shown(shown, match["role"]), kind)
        at = match.end()
    _add(tokens, tags, sentence[at:])
    return tokens, tags


def _shown(text: str, role: str | None) -> str:
    """What a reader of the page sees: `~a.b` is b, `text <target>` is text."""
    if role is None:
        return _TARGET.sub("", text) or text
    text = (_TARGET.sub("", text) or text).lstrip("!")
    return text.lstrip("~").rpartition(".")[2] if text.startswith("~") else text.removesuffix("()")


def _add(tokens: list[str], tags: list[int], text: str, kind: str | None = None) -> None:
    found = _WORD.findall(text)
    tokens += found
    tags += [TAGS.index(f"{'I' if at else 'B'}-{kind}") if kind else 0 for at in range(len(found))]
