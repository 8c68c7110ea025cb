"""Writes docs/develop/house.md from the first line of each file; `make schema` runs it, and a test compares."""

from __future__ import annotations

import ast
from pathlib import Path

PAGE = Path(__file__).with_name("house.md")
PACKAGE = PAGE.parents[2] / "platform" / "shardyard"
HEAD = """# The house

Every file of `platform/shardyard/` and what it holds, from bottom to top: imports go downwards only, and rooms of one
layer do not know each other (`tests/unit/house/test_layers.py`). Written by `make schema`
from the first line of each file.
"""
ROOMS = {
    "": "words",
    "recipe": "layer 1, pure: no torch, Ray or DeepSpeed",
    "planning": "layer 2, pure as well",
    "data": "layer 3",
    "models": "layer 3",
    "objectives": "layer 3",
    "optim": "layer 3",
    "tracking": "layer 3, the only room that imports W&B",
    "engine": "layer 4, the only room that imports DeepSpeed",
    "launch": "layer 5, the only room that imports Ray",
    "dashboard": "layer 6",
    "cli": "layer 6, opens every door",
}


def page() -> str:
    """The page: one table a room."""
    rooms: dict[str, list[Path]] = {room: [] for room in ROOMS}
    for path in sorted(PACKAGE.rglob("*.py")):
        inside = path.relative_to(PACKAGE)
        rooms[inside.parts[0] if len(inside.parts) > 1 else ""].append(path)
    return HEAD + "".join(_table(room, files) for room, files in rooms.items())


def _table(room: str, files: list[Path]) -> str:
    rows = "".join(f"| `{file.relative_to(PACKAGE)}` | {first_line(file)} |\n" for file in files)
    return f"\n## {room or 'at the top'}: {ROOMS[room]}\n\n| file | what it holds |\n|---|---|\n{rows}"


def first_line(file: Path) -> str:
    """The first sentence of a file's docstring."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return " ".join(text.partition("\n\n")[0].split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
