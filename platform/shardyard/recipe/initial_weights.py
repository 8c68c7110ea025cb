"""Names of initial weights: `run:NAME`, a prepared model, a folder, or a hub id with a revision."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from shardyard.recipe.catalog.datasets import DATASETS
from shardyard.recipe.catalog.shipped import ShippedRecipe, shipped_recipes

RUN = "run:"
# Configurations of the prepared models, so that a recipe can be planned before they are prepared.
PRETRAINED_CONFIGS: dict[str, dict[str, object]] = {
    "minilm": {
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
        "max_position_embeddings": 512,
        "vocab_size": 30522,
    },
}
PRETRAINED_FAMILIES = {"minilm": "bert"}


def kind_of(name: str) -> Literal["run", "dataset", "other"]:
    """Whether a name refers to a run, a prepared model, or something else (a folder or hub id)."""
    if name.startswith(RUN):
        return "run"
    found = DATASETS.get(name)
    return "dataset" if found is not None and found.kind == "model" else "other"


def recipe_of_run(name: str) -> ShippedRecipe | None:
    """The shipped recipe of the runs that `run:NAME` refers to."""
    wanted = name.removeprefix(RUN)
    titles = ((shipped, _title(shipped.path, shipped.path.stat().st_mtime_ns)) for shipped in shipped_recipes())
    return next((shipped for shipped, title in titles if title == wanted), None)


@cache
def _title(path: Path, changed_ns: int) -> str | None:
    """The name that a recipe gives its runs; `changed_ns` is when its file changed last."""
    try:
        data = YAML(typ="safe", pure=True).load(path)
    except (OSError, ValueError, YAMLError):
        return None  # loading that recipe reports the problem
    name = data.get("name") if isinstance(data, dict) else None
    return name if isinstance(name, str) else None
