"""Writes docs/fields.md from the schema of the recipe; `make schema` runs it and a test keeps the page current."""

from __future__ import annotations

from pathlib import Path

from shardyard.recipe.explain import FieldExplanation, explain_field
from shardyard.recipe.fields import all_paths

PAGE = Path(__file__).parents[1] / "fields.md"
HEAD = """# Fields of a recipe

Written by `make schema` from `platform/shardyard/recipe/sections/`; change it there. `shardyard explain FIELD` prints
one entry in the terminal.
"""


def page() -> str:
    """The page: one table a section, in the order of the schema."""
    fields = [explain_field(path) for path in all_paths()]
    sections: dict[str, list[FieldExplanation]] = {"": []}
    for field in fields:
        if field.fields:
            sections[field.path] = []
        sections[field.path.rpartition(".")[0]].append(field)
    meanings = {field.path: field.meaning for field in fields}
    return HEAD + "".join(_section(path, meanings.get(path, ""), below) for path, below in sections.items())


def _section(path: str, meaning: str, fields: list[FieldExplanation]) -> str:
    title = f"## {path or 'top level'}\n\n" + (f"{meaning}\n\n" if meaning else "")
    rows = "".join(_row(field) for field in fields)
    return f"\n{title}| field | type | default | meaning |\n|---|---|---|---|\n{rows}"


def _row(field: FieldExplanation) -> str:
    name = field.path.rpartition(".")[2]
    details = [text for text in (field.range, field.unit) if text]
    kind = field.type + (f" ({'; '.join(details)})" if details else "")
    cells = (f"`{name}`", kind, field.default, field.meaning)
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
