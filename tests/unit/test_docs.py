"""Pages that are written from the code are current, and links between pages lead somewhere."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = sorted(path for folder in (".", "docs", "cluster", "cluster/*") for path in REPOSITORY.glob(f"{folder}/*.md"))
_LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def test_the_page_of_fields_is_current() -> None:
    written = runpy.run_path(str(REPOSITORY / "docs" / "write_fields.py"))
    assert written["PAGE"].read_text(encoding="utf-8") == written["page"](), "`make schema` writes docs/fields.md anew"
    assert "| `global_batch` | whole number (at least 1; sequences) |" in written["page"]()


def test_all_pages_are_found() -> None:
    names = {path.relative_to(REPOSITORY).as_posix() for path in PAGES}
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/recipes.md", "cluster/README.md"} <= names


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    links = _LINK.findall(page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_page_of_files_is_current_and_has_a_line_for_each() -> None:
    written = runpy.run_path(str(REPOSITORY / "docs" / "write_house.py"))
    text = written["page"]()
    assert written["PAGE"].read_text(encoding="utf-8") == text, "`make schema` writes docs/house.md anew"
    modules = list((REPOSITORY / "platform" / "shardyard").rglob("*.py"))
    assert len(modules) > 60
    assert [str(path) for path in modules if path.name != "__init__.py" and not written["first_line"](path)] == []
    assert text.count("\n| `") == len(modules)
