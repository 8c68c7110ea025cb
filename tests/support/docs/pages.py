"""The contents of the documentation pages: fenced blocks, and commands in blocks, in running text and in tables."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    *sorted((REPOSITORY / "docs").rglob("*.md")),
    *sorted((REPOSITORY / "cluster").rglob("*.md")),
]
# Generated from docstrings and descriptions, which other tests compare with the code; they show no terminal.
GENERATED = ("docs/develop/house.md", "docs/fields.md")
# Between shell commands of one line.
_OPERATORS = ("&&", "||", ";", "|", "&")
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^ *```$", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"<!-- (?P<mark>[^>]*) -->\s*\Z")
_INLINE = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")
_COMMENT = re.compile(r"(?:^|\s)#.*")


@dataclass(frozen=True)
class Block:
    """A fenced block. `mark` is the HTML comment right before it, `line` that of the fence, from 1."""

    page: str
    line: int
    language: str
    text: str
    mark: str = ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    """One shell command. `fails`: whether the page shows that it ends with an error."""

    page: str
    line: int
    text: str
    inline: bool = False
    fails: bool = False

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"

    @property
    def words(self) -> list[str]:
        """Its words without assignments before, redirections and operators; of several commands, those of the first."""
        found: list[str] = []
        for word in shlex.split(self.text):
            if word in _OPERATORS or word in (">", "<", ">>"):
                break
            if found or not re.match(r"[A-Z_]+=", word):
                found.append(word)
        return found


def page_name(path: Path) -> str:
    """Path of a page relative to the repository."""
    return path.relative_to(REPOSITORY).as_posix()


def blocks() -> list[Block]:
    """All fenced blocks of all pages."""
    return [block for path in PAGES for block in blocks_of(page_name(path), path.read_text(encoding="utf-8"))]


def blocks_of(page: str, text: str) -> Iterator[Block]:
    """The fenced blocks of a page, without the indentation of an enclosing list."""
    for match in _FENCE.finditer(text):
        indent = len(match["indent"])
        body = "".join(line[indent:] if line.strip() else line for line in match["text"].splitlines(keepends=True))
        mark = _MARK.search(text, 0, match.start())
        line = text.count("\n", 0, match.start()) + 1
        yield Block(page, line, match["language"], body, mark["mark"] if mark else "")


def commands() -> list[Command]:
    """All commands of all pages, in reading order."""
    return [one for path in PAGES for one in commands_of(page_name(path), path.read_text(encoding="utf-8"))]


def commands_of(page: str, text: str) -> list[Command]:
    """Commands in terminal blocks, in text and in tables."""
    found = [command for block in blocks_of(page, text) for command in _of_block(block)]
    if page not in GENERATED:
        found += inline_commands(page, text)
    return sorted(found, key=lambda command: command.line)


def inline_code(text: str) -> Iterator[tuple[int, str]]:
    """Line and content of all inline code in text and tables; code that spans two lines is joined."""
    prose = _FENCE.sub(lambda match: "\n" * match[0].count("\n"), text)
    for match in _INLINE.finditer(prose):
        yield prose.count("\n", 0, match.start()) + 1, " ".join(match[1].split())


def inline_commands(page: str, text: str) -> Iterator[Command]:
    """Code in running text that is a command of Shardyard, of make, pip or Python."""
    starts = re.compile(r"([A-Z_]+=\S+ )*(shardyard|make|pip|python|python3) [a-z-]|([A-Z_]+=\S+ )+ray start ")
    for line, code in inline_code(text):
        if starts.match(code):
            yield Command(page, line, code, inline=True)


def _of_block(block: Block) -> Iterator[Command]:
    if block.language not in ("bash", "console"):
        return
    lines = block.text.split("\n")
    for index, line in enumerate(lines):
        if block.language == "console":
            if not line.startswith("$ "):
                continue
            line = line[2:]
        text = _COMMENT.sub("", line).strip()
        if text:
            fails = index + 1 < len(lines) and lines[index + 1].startswith("Error: ")
            for part in _parts(text):
                yield Command(block.page, block.line + 1 + index, part, fails=fails)


def _parts(line: str) -> list[str]:
    """A line `a && b; c` as `a`, `b` and `c`; pipes, quotes and brackets are not split."""
    if "$(" in line:
        return [line]
    parts: list[list[str]] = [[]]
    for word in re.findall(r"'[^']*'|\"[^\"]*\"|&&|;|[^\s;&'\"]+(?:'[^']*'|\"[^\"]*\")?|&", line):
        if word in ("&&", ";"):
            parts.append([])
        else:
            parts[-1].append(word)
    return [" ".join(part) for part in parts if part]
