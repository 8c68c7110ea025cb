"""function-summaries: functions of the standard library without their docstrings, with the beginnings of these."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from shardyard.data.datasets.answers import first_sentences
from shardyard.data.datasets.rows import Converted, mixed
from shardyard.data.datasets.splits import is_held_out, near_duplicates
from shardyard.data.sources.corpus import corpus_files

HELD_OUT_PERCENT = 5.0
# Longer first paragraphs go into details that the code alone rarely shows.
LONGEST_SUMMARY = 160


@dataclass(frozen=True)
class Function:
    """A function: its qualified name, its code without the docstring, and the first paragraph of the docstring."""

    name: str
    code: str
    summary: str

    @property
    def source(self) -> str:
        """What a reader of the code knows: the module or class that it is in, and the code."""
        return f"# {self.name.rpartition('.')[0]}\n{self.code}"


def convert(folders: Mapping[str, Path]) -> Converted:
    """Functions as `source` and summaries as `target`.

    Held out are the modules that the embedded corpora hold out, and further functions by hash. Summaries that share
    five words in a row are on the same side; of functions with the same code, only the first is kept.
    """
    files = corpus_files("python-code")
    kept_back = {one.name for file in files["validation"] for one in _read(file)}
    found = sorted((one for split in files for file in files[split] for one in _read(file)), key=lambda one: one.name)
    distinct = list({one.code: one for one in reversed(found)}.values())[::-1]
    groups = near_duplicates([one.summary for one in distinct])
    back = {group for one, group in zip(distinct, groups, strict=True) if one.name in kept_back}
    splits: dict[str, list[Function]] = {"train": [], "validation": []}
    for one, group in zip(distinct, groups, strict=True):
        splits["validation" if group in back or is_held_out(group, HELD_OUT_PERCENT) else "train"].append(one)
    return Converted(
        {
            split: mixed([{"source": one.source, "target": one.summary, "name": one.name} for one in own], split)
            for split, own in splits.items()
        },
        left_out={"same code as another function": len(found) - len(distinct)},
    )


def _read(file: str) -> Iterator[Function]:
    for document in pq.read_table(file).to_pylist():
        yield from functions(document["text"], document["id"])


def functions(source: str, module: str) -> list[Function]:
    """The functions of a module that have code and a docstring that begins with prose."""
    lines = source.split("\n")  # As ast counts them: form feeds do not end lines.
    found = []
    for name, node in _definitions(ast.parse(source).body, module):
        summary = first_sentences(ast.get_docstring(node) or "")
        docstring = node.body[0]
        assert docstring.end_lineno is not None, "known for parsed code"
        # Code of a single line has nothing beside the docstring, or shares its line.
        alone = len(node.body) == 1 or node.lineno == docstring.lineno or docstring.end_lineno == node.body[1].lineno
        if summary and len(summary) <= LONGEST_SUMMARY and not alone:
            kept = [*lines[node.lineno - 1 : docstring.lineno - 1], *lines[docstring.end_lineno : node.end_lineno]]
            found.append(Function(name, textwrap.dedent("\n".join(kept)), summary))
    return found


def _definitions(nodes: list[ast.stmt], prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Functions of modules and classes with their names; not those within functions."""
    for node in nodes:
        if isinstance(node, ast.ClassDef):
            yield from _definitions(node.body, f"{prefix}.{node.name}")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{prefix}.{node.name}", node
