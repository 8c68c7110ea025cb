"""recipes/schema.json is current, accepts what loads and rejects what does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from shardyard.recipe.catalog.json_schema import recipe_schema, schema_path, schema_text
from shardyard.recipe.catalog.shipped import SWEEPS, share_folder
from shardyard.recipe.fields import all_paths
from shardyard.recipe.loading.yaml_source import read_document

SHIPPED = sorted(path for path in share_folder("recipes").rglob("*.yaml") if path.parent.name != SWEEPS)
VALIDATOR = Draft202012Validator(recipe_schema())


def quickstart() -> dict[str, Any]:
    path = share_folder("recipes") / "gpt" / "quickstart.yaml"
    return read_document(path, str(path)).data


def errors(data: Any) -> list[str]:
    return [error.message for error in VALIDATOR.iter_errors(data)]


def test_the_published_file_is_current() -> None:
    assert schema_path().read_text(encoding="utf-8") == schema_text(), (
        "recipes/schema.json is out of date: python -m shardyard.recipe.catalog.json_schema writes it"
    )


def test_the_schema_is_a_schema() -> None:
    Draft202012Validator.check_schema(recipe_schema())


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_accepted(path: Path) -> None:
    data = read_document(path, str(path)).data
    if path.name.startswith("_"):
        data = {"extends": "nothing", **data}
    assert errors(data) == []


def test_a_typo_a_wrong_type_and_a_missing_key_are_rejected() -> None:
    data = quickstart()
    assert errors(data) == []
    assert "'stpes' was unexpected" in errors(data | {"train": {"stpes": 3, "global_batch": 8}})[0]
    assert errors(data | {"train": {"steps": "many", "global_batch": 8}})
    assert errors(data | {"train": {"steps": 3}}) == ["'global_batch' is a required property"]
    assert errors({key: value for key, value in data.items() if key != "model"}) == ["'model' is a required property"]


def test_a_recipe_that_extends_another_may_be_partial() -> None:
    assert errors({"extends": "gpt/quickstart", "train": {"steps": 3}}) == []
    assert errors({"extends": ["a.yaml", "b.yaml"], "schedule": None, "zero": {"stage": None}}) == []
    assert errors({"extends": 3})
    assert errors({"extends": "a.yaml", "optimizer": {"lr": None}})


def test_every_field_says_what_it_means_and_its_unit() -> None:
    schema = recipe_schema()
    count = 0
    for part in (schema, *schema["$defs"].values()):
        for name, spec in part.get("properties", {}).items():
            assert spec["description"], name
            assert spec.get("unit", "") in spec["description"]
            count += 1
    assert count >= len({path.rpartition(".")[2] for path in all_paths()})
    assert "gpt2" in schema["$defs"]["Model"]["properties"]["family"]["examples"]
    assert "python-docs" in schema["$defs"]["Source"]["properties"]["source"]["examples"]
