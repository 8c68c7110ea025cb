"""Pages that are written from the code are current, and links between pages lead somewhere."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
PAGES = sorted(
    path
    for folder in (".", "docs", "docs/data", "docs/develop", "cluster", "cluster/*")
    for path in REPOSITORY.glob(f"{folder}/*.md")
)
# Text, then the file (empty for a place on the same page), then the place.
_LINK = re.compile(r"\]\((?!\w+:)([^)#]*)(?:#([^)]*))?\)")


def test_the_page_of_fields_is_current() -> None:
    written = runpy.run_path(str(REPOSITORY / "docs" / "develop" / "write_fields.py"))
    assert written["PAGE"].read_text(encoding="utf-8") == written["page"](), "`make schema` writes docs/fields.md anew"
    assert "| `global_batch` | whole number (at least 1; sequences) |" in written["page"]()


def test_all_pages_are_found() -> None:
    names = {path.relative_to(REPOSITORY).as_posix() for path in PAGES}
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/recipes.md", "cluster/README.md"} <= names


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    wrong = []
    for file, place in _links(page):
        target = (page.parent / file) if file else page
        if not target.exists() or (place and place not in _places(target)):
            wrong.append(f"{file}#{place}" if place else file)
    assert wrong == []


def test_every_page_is_linked_from_the_readme_directly_or_on_the_way() -> None:
    reached, todo = set(), [REPOSITORY / "README.md"]
    while todo:
        page = todo.pop()
        reached.add(page)
        targets = [(page.parent / file).resolve() for file, _ in _links(page) if file]
        pages = [target / "README.md" if target.is_dir() else target for target in targets]
        todo += [target for target in pages if target.suffix == ".md" and target not in reached]
    assert [path.name for path in PAGES if path not in reached] == []
    direct = {(REPOSITORY / file).resolve() for file, _ in _links(REPOSITORY / "README.md") if file}
    assert [path.name for path in (REPOSITORY / "docs").glob("*.md") if path not in direct] == []


def test_places_are_named_as_they_are_shown() -> None:
    assert _places(REPOSITORY / "docs" / "recipes.md") >= {"sources-of-data", "mistakes"}
    assert "what-it-does" not in _places(REPOSITORY / "docs" / "recipes.md")


def _links(page: Path) -> list[tuple[str, str]]:
    """File and place of each link of a page to something of this repository."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return _LINK.findall(text)


def _places(page: Path) -> set[str]:
    """What the headings of a page are called in links."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.slow
def test_the_page_of_files_is_current_and_has_a_line_for_each() -> None:
    written = runpy.run_path(str(REPOSITORY / "docs" / "develop" / "write_house.py"))
    text = written["page"]()
    assert written["PAGE"].read_text(encoding="utf-8") == text, "`make schema` writes docs/develop/house.md anew"
    modules = list((REPOSITORY / "platform" / "shardyard").rglob("*.py"))
    assert len(modules) > 60
    assert [str(path) for path in modules if path.name != "__init__.py" and not written["first_line"](path)] == []
    assert text.count("\n| `") == len(modules)
