"""Names of classes that do not go with the rest of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shardyard.recipe.loading.load import parse_recipe
from shardyard.recipe.rules.heads import head_rules
from support.objectives import masked_lm, token_classification


def findings(fields: dict[str, Any]) -> dict[str, str]:
    return {".".join(map(str, path)): message for path, message in head_rules(parse_recipe(fields))}


@pytest.mark.parametrize(
    ("labels", "config", "path", "message"),
    [
        (["a", "b", "a"], {}, "model.labels", "names 'a' more than once"),
        (["a", "b"], {"num_labels": 3}, "model.labels", "has 2 names, and model.config.num_labels is 3"),
        (["a", "b"], {"id2label": {}}, "model.config.id2label", "is made from model.labels; keep one of them"),
    ],
)
def test_names_of_classes(tmp_path: Path, labels: list[str], config: dict[str, Any], path: str, message: str) -> None:
    fields = token_classification.recipe_fields(token_classification.write_data(tmp_path))
    assert not findings(fields)
    fields["model"] |= {"labels": labels, "config": fields["model"]["config"] | config}
    assert message in findings(fields)[path]


def test_an_objective_without_classes(tmp_path: Path) -> None:
    fields = masked_lm.recipe_fields(masked_lm.write_data(tmp_path))
    fields["model"] |= {"labels": ["a"]}
    assert "does nothing for the objective masked_lm, only for" in findings(fields)["model.labels"]
