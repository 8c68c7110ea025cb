"""Generates recipes/schema.json and recipes/sweeps/schema.json, for completion and checks in editors.

`python -m shardyard.recipe.catalog.json_schema` regenerates them after a change of the schemas; a test fails if they
are stale.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shardyard.recipe.catalog.shipped import EMBEDDED_SOURCES, SWEEPS, share_folder, tokenizer_specs
from shardyard.recipe.schema import Recipe
from shardyard.recipe.sweep.schema import Sweep

DIALECT = "https://json-schema.org/draft/2020-12/schema"
FAMILY_EXAMPLES = ("gpt2", "llama", "mistral", "mixtral", "qwen2", "qwen3", "gpt_neox", "opt", "bloom", "phi")
_EXTENDS = {
    "description": "Recipe or recipes that this one builds on: a path relative to this file, or a shipped name. "
    "Mappings merge, anything else replaces, null goes back to the default.",
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
}


def recipe_schema() -> dict[str, object]:
    """The JSON Schema of a recipe file, draft 2020-12, with meaning and unit of each field."""
    schema = Recipe.model_json_schema()
    definitions = schema.pop("$defs")
    for part in (schema, *definitions.values()):
        _finish(part)
    _examples(definitions["Model"], "family", FAMILY_EXAMPLES)
    _examples(definitions["Source"], "source", EMBEDDED_SOURCES)
    _examples(schema, "tokenizer", tokenizer_specs())
    schema["properties"] = {"extends": _EXTENDS, **schema["properties"]}
    # A file that extends another takes required keys from it, so only a file without `extends` must have them all.
    required = {"required": schema.pop("required"), "properties": _required_below(schema, definitions)}
    required["properties"]["model"] = {"anyOf": [required["properties"]["model"], {"required": ["module"]}]}
    return {
        "$schema": DIALECT,
        "title": "Shardyard recipe",
        **{key: value for key, value in schema.items() if key != "title"},
        "if": {"not": {"required": ["extends"]}},
        "then": required,
        "$defs": definitions,
    }


def sweep_schema() -> dict[str, object]:
    """The JSON Schema of a sweep file."""
    schema = Sweep.model_json_schema()
    definitions = schema.pop("$defs")
    for part in (schema, *definitions.values()):
        _finish(part)
    top = {"$schema": DIALECT, "title": "Shardyard sweep"}
    return {**top, **{key: value for key, value in schema.items() if key != "title"}, "$defs": definitions}


def sweep_schema_path() -> Path:
    """The path of the published file for sweeps."""
    return share_folder("recipes") / SWEEPS / "schema.json"


def schema_text(schema: dict[str, object] | None = None) -> str:
    """The content of the published file."""
    return json.dumps(recipe_schema() if schema is None else schema, indent=2, ensure_ascii=False) + "\n"


def schema_path() -> Path:
    """The path of the published file."""
    return share_folder("recipes") / "schema.json"


def _required_below(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Move the required keys of each section out of its definition, to the top level."""
    found = {}
    for name, spec in schema["properties"].items():
        keys = definitions.get(spec.get("$ref", "").rpartition("/")[2], {}).pop("required", None)
        if keys:
            found[name] = {"required": keys}
    return found


def _finish(part: dict[str, Any]) -> None:
    """Drop titles, which repeat the keys; add units to descriptions, which editors show; allow null (the default)."""
    part.pop("title", None)
    required = part.get("required", [])
    for name, spec in part.get("properties", {}).items():
        spec.pop("title", None)
        unit = spec.get("unit")
        if unit:
            spec["description"] = f"{spec.get('description', '')} Unit: {unit}."
        if name not in required and "anyOf" not in spec:
            value = {key: spec.pop(key) for key in list(spec) if key not in ("description", "default", "unit")}
            spec["anyOf"] = [value, {"type": "null"}]
        elif name not in required and {"type": "null"} not in spec["anyOf"]:
            spec["anyOf"] = [*spec["anyOf"], {"type": "null"}]


def _examples(part: dict[str, Any], name: str, values: Any) -> None:
    part["properties"][name]["examples"] = list(values)


if __name__ == "__main__":
    schema_path().write_text(schema_text(), encoding="utf-8")
    sweep_schema_path().write_text(schema_text(sweep_schema()), encoding="utf-8")
