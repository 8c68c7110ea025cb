"""Functions of the standard library with their summaries."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shardyard.data.datasets import functions

# With a form feed, as the standard library has some.
MODULE = '''"""A module."""

import os


def add(a, b):
    """Return the sum
    of two numbers.

    More about it.
    """
    # The order does not matter.
    return a + b


class Cook(Base):
    """Of eggs and spam."""

    def fry(self, eggs):
        """Fry all of the eggs."""

        def inner():
            """Not of the module itself."""
            return eggs

        return inner()

    async def wait(self):
        """Wait until everything is done."""
        await self.done

    def abstract(self):
        """Nothing but a docstring here."""

    def line(self): """All of it in a line."""; return 1

    def undescribed(self):
        return os.name


def long():
    """LONG"""
    return 1
'''


def test_functions_without_their_docstrings() -> None:
    found = {one.name: one for one in functions.functions(MODULE.replace("LONG", "Very " + "long " * 40), "spam")}
    assert {name: one.summary for name, one in found.items()} == {
        "spam.add": "Return the sum of two numbers.",
        "spam.Cook.fry": "Fry all of the eggs.",
        "spam.Cook.wait": "Wait until everything is done.",
    }
    assert found["spam.add"].source == "# spam\ndef add(a, b):\n    # The order does not matter.\n    return a + b"
    assert found["spam.Cook.wait"].source == "# spam.Cook\nasync def wait(self):\n    await self.done"


def test_summaries_are_held_out_with_their_modules_and_likenesses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def code(number: int, summary: str) -> str:
        return f'def f{number}():\n    """{summary}"""\n    return {number}\n'

    like = "Return what the module holds of everything."
    texts = {
        "train": [code(n, f"Do the number {n} of {n + 7}.") for n in range(400)]
        + [code(500, like), code(0, "A copy of the number 0.")],
        "validation": [code(501, like.replace("everything", "nothing"))],
    }
    files = {}
    for split, sources in texts.items():
        rows = [{"id": f"{split}{number}", "text": text} for number, text in enumerate(sources)]
        files[split] = [str(tmp_path / f"{split}.parquet")]
        pq.write_table(pa.Table.from_pylist(rows), files[split][0])
    monkeypatch.setattr(functions, "corpus_files", lambda name: files)
    converted = functions.convert({})
    names = {split: {row["name"] for row in rows} for split, rows in converted.splits.items()}
    assert {"train400.f500", "validation0.f501"} <= names["validation"]
    assert 8 < len(names["validation"]) < 40
    assert len(names["train"] | names["validation"]) == 402
    assert converted.left_out == {"same code as another function": 1}
