"""Defaults that have changed: a run folder that an earlier version wrote continues as it began."""

from __future__ import annotations

from shardyard.recipe import families
from shardyard.recipe.rules.experts import EXPERT_COUNTS

# Linear layers, but no parameter of experts: what an adapter without targets adapted before stacked experts had any.
LINEAR_LAYERS = r"(?!.*\.experts\.[^.]*$).*"


def keep_earlier_defaults(resolved: dict[str, object]) -> None:
    """Give fields of a resolved.yaml, in place, the values that they had by default when it was written.

    It has every field, so a missing one tells its age.
    """
    model = resolved.get("model")
    if not isinstance(model, dict):
        return
    adapter = model.get("adapter")
    if not isinstance(adapter, dict) or "rslora" in adapter or adapter.get("targets"):
        return
    fields = families.config_fields(str(model.get("family")))
    if fields is None or fields.names & set(EXPERT_COUNTS):
        adapter["targets"] = [LINEAR_LAYERS]
