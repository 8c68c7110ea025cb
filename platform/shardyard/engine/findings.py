"""What the probes of a recipe's model find, from a cache on the disk: the result follows from the configuration."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import replace
from importlib import metadata
from pathlib import Path

from pydantic import TypeAdapter
from transformers import PreTrainedConfig

from shardyard.data.multimodal.placeholders import model_tokenizer
from shardyard.data.tokenizers.compare import other_tokens
from shardyard.data.tokenizers.tokenizer import load_tokenizer, vocabulary_size
from shardyard.errors import ShardyardError
from shardyard.models import probes
from shardyard.models.pretrained import pretrained_config
from shardyard.models.probes.probe import is_probed, probe_recipe
from shardyard.objectives.registry import objective_spec
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
    return _with_tokenizer(recipe, _probed(recipe, config))


def _with_tokenizer(recipe: Recipe, found: Findings) -> Findings:
    """The findings with a tokenizer that is not that of the pretrained weights; these are read each time."""
    base = recipe.model.pretrained
    if base is None or not (recipe.model.probes.tokenizer and objective_spec(recipe.objective).text):
        return found
    if _place(recipe.tokenizer) == _place(base):
        return found
    other = other_tokens(base, model_tokenizer(recipe))
    if other is None:
        return found
    what = f"is {recipe.tokenizer}, and model.pretrained {base} was trained with another tokenizer: {other.text}"
    if other.few:
        return replace(found, notices=(*found.notices, f"tokenizer {what}"))
    advice = f"set it to {base}, or train with other tokens on purpose: `-s model.probes.tokenizer=false`"
    return replace(found, refusals=(*found.refusals, ("tokenizer", f"{what}; {advice}")))


def _place(name: str) -> str:
    """A path without `~`, or a hub id without its revision."""
    folder = Path(name).expanduser()
    return str(folder.absolute()) if folder.is_dir() else name.partition("@")[0]


def _probed(recipe: Recipe, config: PreTrainedConfig) -> Findings:
    sees = objective_spec(recipe.objective).sees
    if not sees and not is_probed(recipe, config):
        return Findings()
    path = _path(recipe, config)
    with contextlib.suppress(OSError, ValueError):
        return _FINDINGS.validate_json(path.read_text(encoding="utf-8"))
    if sees:
        from shardyard.engine.picture_probes import probe_pictures  # A plan of text needs no Pillow and no datasets.

        found = probe_pictures(recipe)
    else:
        found = probe_recipe(recipe, config)
    if recipe.model.probes.vocabulary:
        found = replace(found, refusals=found.refusals + _other_vocabulary(recipe))
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, _FINDINGS.dump_json(found).decode())
    return found


def _other_vocabulary(recipe: Recipe) -> tuple[tuple[str, str], ...]:
    """The refusal of a teacher that lacks tokens of the recipe's tokenizer; none if either is not on this machine."""
    name = recipe.distillation.teacher
    if objective_spec(recipe.objective).frozen != "teacher" or name is None:
        return ()
    try:
        own = pretrained_config(name).get_text_config().vocab_size
        tokens = vocabulary_size(load_tokenizer(recipe.tokenizer))
    except (OSError, ValueError, ShardyardError):
        return ()
    if own >= tokens:
        return ()
    text = (
        f"{name} has a vocabulary of {own} entries and the tokenizer {tokens}, so a student's probabilities cannot be "
        "compared with its; choose a teacher with the same tokenizer"
    )
    return (("distillation.teacher", text),)


def _path(recipe: Recipe, config: PreTrainedConfig) -> Path:
    code = [
        *sorted((_CODE / "probes").glob("*.py")),
        _CODE / "isolation.py",
        _CODE / "quirks.py",
        Path(__file__).with_name("picture_probes.py"),
    ]
    contents = {
        "config": config.to_json_string(use_diff=False),
        "model": recipe.model.model_dump(mode="json", include={"attention", "dropout", "freeze", "adapter", "probes"}),
        "given": sorted(recipe.model.config),
        "objective": recipe.objective,
        "packed": [recipe.data.isolate_documents, recipe.data.sequence_length],
        "teacher": [recipe.distillation.teacher, recipe.tokenizer],
        "image": recipe.image.model_dump(mode="json"),
        "versions": [metadata.version(name) for name in _PACKAGES],
        "code": [hashlib.sha256(path.read_bytes()).hexdigest() for path in code],
    }
    digest = hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()
    cache = os.environ.get("SHARDYARD_CACHE")
    root = Path(cache).expanduser() if cache else Path.home() / ".cache" / "shardyard"
    return root / "probed" / f"{digest[:32]}.json"
