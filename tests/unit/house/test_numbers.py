"""The table of docs/develop/lab-notes.md is what its command prints, of this checkout or a later one."""

from __future__ import annotations

import re

import pytest

from support.house.numbers import numbers
from support.module_graph import PACKAGE

REPOSITORY = PACKAGE.parents[1]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found() -> dict[str, str]:
    return numbers(REPOSITORY)


def test_the_table_of_the_lab_notes_has_the_figures_of_the_command(found: dict[str, str]) -> None:
    notes = (REPOSITORY / "docs" / "develop" / "lab-notes.md").read_text(encoding="utf-8")
    table = notes.partition("**The house in numbers**")[2].partition("\n\n|")[2].partition("\n\n")[0]
    rows = [re.split(r" ?\| ?", line.strip("|")) for line in table.splitlines()[2:]]
    assert [row[0].strip() for row in rows] == list(found)
    assert all(len(row) == 3 for row in rows)


def test_the_figures_are_of_the_package(found: dict[str, str]) -> None:
    assert int(found["Python files"]) > 300
    assert found["import cycles"] == "0"
    assert int(found["imports inside functions"]) > 0
    median, most = map(int, found["median and most lines a file"].split(", "))
    assert 50 < median < most <= 500
