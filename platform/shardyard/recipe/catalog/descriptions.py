"""The description of a recipe file, read from its first lines, so that listing recipes does not check them."""

from __future__ import annotations

from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent, ScalarEvent

KEY = "description"


def description_of(path: Path) -> str | None:
    """The `description` in the file itself; None if it has none or cannot be read."""
    depth, key = 0, None
    try:
        for event in YAML(typ="safe", pure=True).parse(path.read_text(encoding="utf-8-sig")):
            if isinstance(event, ScalarEvent) and depth == 1:
                if key == KEY:
                    return str(event.value)
                key = event.value if key is None else None
            elif isinstance(event, CollectionStartEvent):
                depth += 1
            elif isinstance(event, CollectionEndEvent):
                depth -= 1
                key = None if depth == 1 else key
    except (OSError, ValueError, YAMLError):
        return None
    return None
