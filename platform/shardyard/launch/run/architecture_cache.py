"""A disk cache of measured model sizes, because measuring imports torch and transformers, which takes seconds.

The cache key covers everything that could change a size: the relevant part of the recipe, Shardyard's code, library
versions, and the tokenizer's files. Models with other dependencies are measured each time.

Sizes of the shipped recipes are in `recipes/sizes.json`, so that the first plan on a machine is fast too. They are
valid for the version of transformers with which they were measured; a test measures all of them again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path

from pydantic import TypeAdapter

from shardyard.objectives.registry import objective_spec
from shardyard.planning.architecture import Architecture
from shardyard.planning.findings import Findings
from shardyard.recipe.catalog.shipped import PACKAGE, share_folder
from shardyard.recipe.code import names_code
from shardyard.recipe.schema import Recipe
from shardyard.tracking.files import write_atomically

SIZES = "sizes.json"
_ARCHITECTURE = TypeAdapter(Architecture)
_PACKAGES = ("torch", "transformers", "peft", "tokenizers")
# The parts of a recipe that, with the tokenizer, determine the sizes of a model.
_SIZING = {"model", "objective", "tokenizer", "added_tokens", "data", "image"}
# Findings follow from a teacher's vocabulary too; shipped recipes have findings of their own model alone.
_FOUND_FROM = {*_SIZING, "distillation"}
# A recipe with a module is not cached at all.
_SIZELESS: dict[str, set[str] | dict[str, bool | set[str]]] = {
    "data": {
        "train",
        "validation",
        "temperature",
        "stages",
        "on_error",
        "error_limit",
        "packing",
        "isolation",
        "special_tokens",
        "source_language",
        "target_language",
        "task",
    },
    "model": {"module": True, "probes": {"tokenizer"}},
}


def recall(recipe: Recipe) -> Architecture | None:
    """The cached sizes of a recipe's model; None if they are missing or outdated."""
    return shipped_size(recipe) or _recall_kept(recipe)


def shipped_sizes(measured: Iterable[tuple[Recipe, Architecture]]) -> str:
    """The text of recipes/sizes.json; models that depend on anything outside the recipe are omitted."""
    found = {_shipped_key(recipe): _plain(architecture) for recipe, architecture in measured}
    lines = [f"{json.dumps(key)}: {json.dumps(found[key])}" for key in sorted(filter(None, found))]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _plain(architecture: Architecture) -> dict[str, object]:
    """The fields of an architecture but those of a teacher, which is not cached; findings only if there are any."""
    fields = asdict(replace(architecture, frozen_parameters=0))
    empty = {"findings": asdict(Findings()), "frozen_parameters": 0}
    return {name: value for name, value in fields.items() if name not in empty or value != empty[name]}


def shipped_size(recipe: Recipe) -> Architecture | None:
    """The sizes that came with a shipped recipe; None for any other, and for one whose weights lie elsewhere."""
    key = _shipped_key(recipe)
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        shipped = json.loads((share_folder("recipes") / SIZES).read_text(encoding="utf-8"))
        return _ARCHITECTURE.validate_python(shipped[key])
    return None


def _shipped_key(recipe: Recipe) -> str | None:
    text = recipe.model.text_config
    # A vocabulary in the recipe takes precedence over the tokenizer, which may be on a hub.
    tokenizer = [] if "vocab_size" in text else _tokenizer_files(recipe)
    if recipe.model.pretrained is not None or tokenizer is None or names_code(recipe):
        return None
    contents = {
        "recipe": recipe.model_dump(mode="json", include=_SIZING, exclude=_SIZELESS),
        "versions": [metadata.version(name) for name in _counting(recipe)],
        "files": [[path.name, hashlib.sha256(path.read_bytes()).hexdigest()] for path in tokenizer],
    }
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()[:32]


def _counting(recipe: Recipe) -> tuple[str, ...]:
    return ("transformers", "peft") if recipe.model.adapter is not None else ("transformers",)


def _recall_kept(recipe: Recipe) -> Architecture | None:
    path = _path(recipe)
    if path is None:
        return None
    with contextlib.suppress(OSError, ValueError, TypeError):
        return _ARCHITECTURE.validate_json(path.read_text(encoding="utf-8"))
    return None


def keep(recipe: Recipe, architecture: Architecture) -> None:
    """Cache sizes for `recall`; write errors are ignored."""
    path = _path(recipe)
    if path is None:
        return
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(asdict(architecture)))


def _path(recipe: Recipe) -> Path | None:
    """The cache path; None if sizes depend on weights or a tokenizer on a hub, on external code or the like."""
    tokenizer = _tokenizer_files(recipe)
    if recipe.model.pretrained is not None or tokenizer is None or names_code(recipe):
        return None
    contents = {
        "recipe": recipe.model_dump(mode="json", include=_FOUND_FROM, exclude=_SIZELESS),
        "versions": [metadata.version(name) for name in _PACKAGES],
        "files": [_stamp(path) for path in (*sorted(PACKAGE.rglob("*.py")), *tokenizer)],
    }
    digest = hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()
    cache = os.environ.get("SHARDYARD_CACHE")
    root = Path(cache).expanduser() if cache else Path.home() / ".cache" / "shardyard"
    return root / "measured" / f"{digest[:32]}.json"


def _tokenizer_files(recipe: Recipe) -> list[Path] | None:
    if not objective_spec(recipe.objective).text:
        return []
    given = Path(recipe.tokenizer).expanduser()
    shipped = share_folder("tokenizers") / f"{recipe.tokenizer}.yaml"
    for spec in (given, shipped):
        if spec.is_file():
            return [spec, *_below(spec.with_suffix(""))]
    return list(_below(given)) if given.is_dir() else None


def _below(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _stamp(path: Path) -> tuple[str, int, int]:
    found = path.stat()
    return str(path), found.st_size, found.st_mtime_ns
