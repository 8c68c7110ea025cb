"""Rules for fine-tuning: pretrained weights, trained parameters, teachers and reference models."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path as FilePath

from shardyard.objectives.registry import objective_spec
from shardyard.recipe.catalog.datasets import DATASETS
from shardyard.recipe.fields import Path
from shardyard.recipe.initial_weights import PRETRAINED_FAMILIES, RUN, kind_of, recipe_of_run
from shardyard.recipe.schema import Adapter, Recipe

Finding = tuple[Path, str]


def finetune_rules(recipe: Recipe) -> Iterator[Finding]:
    """All findings about pretrained weights, freezing, adapters, teachers and preferences."""
    yield from _names(recipe)
    yield from _family(recipe)
    yield from _adapter(recipe)
    if objective_spec(recipe.objective).frozen == "reference" and recipe.model.pretrained is None:
        yield (
            ("model",),
            (
                "lacks pretrained: preference tuning needs a model that answers already; give a folder, a hub id or "
                "run:NAME"
            ),
        )


def _names(recipe: Recipe) -> Iterator[Finding]:
    """Special names: `run:` needs a run name, and a dataset's name must be that of a model."""
    adapter = recipe.model.adapter
    named: tuple[tuple[Path, str | None], ...] = (
        (("model", "pretrained"), recipe.model.pretrained),
        (("model", "adapter", "pretrained"), None if adapter is None else adapter.pretrained),
        (("distillation", "teacher"), recipe.distillation.teacher),
        (("tokenizer",), recipe.tokenizer),
    )
    for path, name in named:
        if name is None:
            continue
        if name == RUN:
            yield path, "lacks the name of a recipe, as in run:gpt-quickstart: the newest finished run of it is used"
        found = DATASETS.get(name)
        if found is not None and found.kind == "rows":
            yield path, f"{name} is a set of rows, not a pretrained model; name it as a source of data"


# Pairs of a family of pretrained weights and a family with the same body under another head.
_SAME_BODY = {("vit_mae", "vit")}


def _family(recipe: Recipe) -> Iterator[Finding]:
    name, family = recipe.model.pretrained, recipe.model.family
    if name is None:
        return
    found = PRETRAINED_FAMILIES.get(name) or _model_type(name)
    if found is not None and found != family and (found, family) not in _SAME_BODY:
        yield ("model", "family"), f"is {family}, but {name} holds a model of type {found}; write {found}"


def _model_type(name: str) -> str | None:
    """The model type of a local folder; None if it is elsewhere or unreadable."""
    if kind_of(name) != "other":
        return None
    try:
        stored = json.loads((FilePath(name).expanduser() / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):
        return None
    found = stored.get("model_type") if isinstance(stored, dict) else None
    return found if isinstance(found, str) else None


def _adapter(recipe: Recipe) -> Iterator[Finding]:
    adapter, model = recipe.model.adapter, recipe.model
    if adapter is None:
        return
    if model.pretrained is None:
        yield (
            ("model", "adapter"),
            "adapts weights that were never trained; give model.pretrained, or remove the adapter",
        )
    yield from _variants(recipe, adapter)
    if adapter.modules_to_save and objective_spec(recipe.objective).frozen == "reference":
        yield (
            ("model", "adapter", "modules_to_save"),
            "would change the reference model, which is the trained one with its adapters switched off; remove it",
        )
    if model.freeze:
        yield (
            ("model", "freeze"),
            "does nothing beside model.adapter, which freezes all weights but the adapter's and new heads; remove it",
        )


def _variants(recipe: Recipe, adapter: Adapter) -> Iterator[Finding]:
    """Variants of LoRA that exclude each other or another setting."""
    at = ("model", "adapter")
    for index, target in enumerate(adapter.targets):
        try:
            re.compile(target)
        except re.error as error:
            yield (*at, "targets", index), f"{target!r} is no regular expression: {error}"
    if adapter.init != "kaiming":
        if objective_spec(recipe.objective).frozen == "reference":
            yield (
                (*at, "init"),
                (
                    "takes singular vectors out of the weights, which with the adapters switched off are the reference "
                    "model; set it to kaiming"
                ),
            )
        if adapter.pretrained is not None:
            yield (*at, "init"), "does nothing beside model.adapter.pretrained, which has the values; remove it"
    if adapter.pretrained is not None and kind_of(adapter.pretrained) != "run":
        yield from _adapter_folder(adapter.pretrained)
    if adapter.loraplus_ratio is not None and recipe.optimizer.name == "muon":
        yield (*at, "loraplus_ratio"), "sets learning rates that muon sets itself; use another optimizer, or remove it"


def _adapter_folder(name: str) -> Iterator[Finding]:
    """An adapter to continue from must be a folder here."""
    at = ("model", "adapter", "pretrained")
    if kind_of(name) == "dataset":
        yield at, f"{name} is a pretrained model, not an adapter; name it in model.pretrained"
    elif not _is_folder(name):
        yield at, f"no folder {name!r}; give the folder of an adapter, or run:NAME for the adapter of an earlier run"


def _is_folder(name: str) -> bool:
    try:
        return FilePath(name).expanduser().is_dir()
    except (OSError, ValueError, RuntimeError):  # invalid file names, unknown users
        return False


def launch_advice(name: str) -> str:
    """The command that creates the weights named by `run:NAME` or a prepared model."""
    if kind_of(name) == "dataset":
        return f"run `shardyard data prepare {name}`"
    shipped = recipe_of_run(name)
    recipe = shipped.name if shipped is not None else f"a recipe whose name is {name.removeprefix(RUN)}"
    return f"`shardyard launch {recipe}` makes one" if shipped is not None else f"launch {recipe} first"
