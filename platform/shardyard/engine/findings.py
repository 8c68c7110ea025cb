"""What the probes of a recipe's model find, from a cache on the disk: the result follows from the configuration."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from importlib import metadata
from pathlib import Path

from pydantic import TypeAdapter
from transformers import PreTrainedConfig

from shardyard.models import probes
from shardyard.models.probes.probe import is_probed, probe_recipe
from shardyard.planning.findings import Findings
from shardyard.recipe.schema import Recipe
from shardyard.tracking.files import write_atomically

_PACKAGES = ("torch", "transformers")
_FINDINGS = TypeAdapter(Findings)
# Findings of other code are not used.
_CODE = Path(probes.__file__).parents[1]


def find(recipe: Recipe, config: PreTrainedConfig) -> Findings:
    """The findings for a recipe's model.

    Args:
        config: of the model, as `architecture_config` makes it.
    """
    if not is_probed(recipe, config):
        return Findings()
    path = _path(recipe, config)
    with contextlib.suppress(OSError, ValueError):
        return _FINDINGS.validate_json(path.read_text(encoding="utf-8"))
    found = probe_recipe(recipe, config)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, _FINDINGS.dump_json(found).decode())
    return found


def _path(recipe: Recipe, config: PreTrainedConfig) -> Path:
    code = [*sorted((_CODE / "probes").glob("*.py")), _CODE / "isolation.py", _CODE / "quirks.py"]
    contents = {
        "config": config.to_json_string(use_diff=False),
        "model": recipe.model.model_dump(mode="json", include={"attention", "dropout", "freeze", "adapter", "probes"}),
        "given": sorted(recipe.model.config),
        "objective": recipe.objective,
        "packed": [recipe.data.isolate_documents, recipe.data.sequence_length],
        "teacher": recipe.distillation.teacher,
        "versions": [metadata.version(name) for name in _PACKAGES],
        "code": [hashlib.sha256(path.read_bytes()).hexdigest() for path in code],
    }
    digest = hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()
    cache = os.environ.get("SHARDYARD_CACHE")
    root = Path(cache).expanduser() if cache else Path.home() / ".cache" / "shardyard"
    return root / "probed" / f"{digest[:32]}.json"
