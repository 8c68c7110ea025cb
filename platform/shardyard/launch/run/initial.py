"""Locating initial weights once, before anything runs: a resumed run uses the same weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from shardyard.data.datasets.reading import pretrained_folder
from shardyard.errors import DataError, ModelError, Problem, RecipeError, UsageError
from shardyard.recipe.chat_template import with_template_text
from shardyard.recipe.fields import dotted
from shardyard.recipe.initial_weights import PRETRAINED_CONFIGS, RUN, kind_of, recipe_of_run
from shardyard.recipe.loading.load import load_recipe
from shardyard.recipe.rules import rules
from shardyard.recipe.rules.finetune import launch_advice
from shardyard.recipe.schema import Model, Recipe
from shardyard.recipe.sections.base import Section
from shardyard.tracking.run.folder import RunFolder, list_runs
from shardyard.tracking.run.info import WeightsInfo

_Section = TypeVar("_Section", bound=Section)
_ADAPTER = "model.adapter.pretrained"
# Fields of a recipe that name weights, or a tokenizer stored with them.
_FIELDS = ("model.pretrained", _ADAPTER, "distillation.teacher", "tokenizer")


def locate(recipe: Recipe, runs_dir: Path, fields: Sequence[str] = _FIELDS) -> tuple[Recipe, dict[str, WeightsInfo]]:
    """The recipe with paths instead of names, and for run.json the name, path and fingerprint of each.

    `run:NAME` is the newest finished run of the recipe NAME in `runs_dir`; a hub id is pinned to its commit. The
    adapter of a run is written to its folder as `export --adapter` does.

    Raises:
        UsageError: the run does not exist.
        DataError: a model is not prepared.
        RecipeError: the weights do not match the recipe.
    """
    found: dict[str, WeightsInfo] = {}
    for field in fields:
        name = _value(recipe, field)
        if name is None or (field == "tokenizer" and kind_of(name) == "other"):
            continue
        path = _adapter(name, runs_dir) if field == _ADAPTER else _path(name, runs_dir, field)
        if path is not None:
            found[field] = {"name": name, "path": str(path), "sha256": _fingerprint(path)}
        elif (commit := _commit(name, field)) is not None:
            found[field] = {"name": name, "path": f"{name.partition('@')[0]}@{commit}"}
    located = with_template_text(_with(recipe, {field: value["path"] for field, value in found.items()}))
    if _ADAPTER in found:
        _check_base(found)
    findings = rules.check(located) if found else []
    if findings:
        raise RecipeError(recipe.name, [Problem("", dotted(path), message) for path, message in findings])
    return located, found


def check_unchanged(folder: RunFolder) -> None:
    """Refuse to resume a run whose initial weights have changed.

    Raises:
        UsageError: they are gone or changed.
    """
    for field, value in folder.info().starting.items():
        path = Path(value["path"])
        if "sha256" in value and (not path.is_dir() or _fingerprint(path) != value["sha256"]):
            state = "changed" if path.is_dir() else "disappeared"
            raise UsageError(
                f"{folder.id} started from {field} {value['path']}, which has {state} since; restore it to "
                "resume, or launch a new run."
            )


def for_planning(recipe: Recipe, runs_dir: Path) -> Recipe:
    """The recipe with paths, or with a known configuration for weights that are not local yet: sizes need no weights.

    A recipe that specifies the sizes is planned without contacting the hub.
    """
    here = [field for field in _FIELDS if (name := _value(recipe, field)) is None or _is_here(name, runs_dir, field)]
    adapter = _value(recipe, _ADAPTER)
    if adapter is not None and kind_of(adapter) == "run" and _ADAPTER not in here:
        recipe = _changed(recipe, _ADAPTER.split("."), None)
    name = recipe.model.pretrained
    if name is not None and _is_hub_id(name) and _gives_sizes(recipe.model):
        here.remove("model.pretrained")
    located, _ = locate(recipe, runs_dir, here)
    if name is None or "model.pretrained" in here:
        return located
    config = recipe.model.config if _gives_sizes(recipe.model) else {**_known_config(name), **recipe.model.config}
    known = config.get("vocab_size")
    if isinstance(known, int) and "vocab_size" not in recipe.model.config:
        config = {**config, "vocab_size": known + len(recipe.added_tokens)}
    model = recipe.model.model_copy(update={"pretrained": None, "config": config})
    return located.model_copy(update={"model": model})


def _is_hub_id(name: str) -> bool:
    return kind_of(name) == "other" and not Path(name).expanduser().is_dir()


def _gives_sizes(model: Model) -> bool:
    """Whether the configuration is complete, including the vocabulary."""
    return "vocab_size" in model.text_config


def _is_here(name: str, runs_dir: Path, field: str) -> bool:
    if field == _ADAPTER:
        return kind_of(name) == "other" or _is_exported(name, runs_dir)
    try:
        return kind_of(name) == "other" or _path(name, runs_dir, "") is not None
    except (UsageError, DataError):
        return False


def _known_config(name: str) -> dict[str, object]:
    if kind_of(name) == "dataset":
        return PRETRAINED_CONFIGS[name]
    shipped = recipe_of_run(name)
    if shipped is None:
        raise UsageError(f"model.pretrained: {name} is not here, so its sizes are unknown; {launch_advice(name)}.")
    model = load_recipe(str(shipped.path)).recipe.model
    if model.pretrained is None or _gives_sizes(model):
        return model.config
    return {**_known_config(model.pretrained), **model.config}


def _value(recipe: Recipe, field: str) -> str | None:
    value: Any = recipe
    for part in field.split("."):
        value = getattr(value, part, None)
    return value if isinstance(value, str) else None


def _with(recipe: Recipe, values: dict[str, str]) -> Recipe:
    for field, value in values.items():
        recipe = _changed(recipe, field.split("."), value)
    return recipe


def _changed(section: _Section, path: Sequence[str], value: str | None) -> _Section:
    """A section with another value at a path of field names."""
    key, *inner = path
    return section.model_copy(update={key: _changed(getattr(section, key), inner, value) if inner else value})


def _path(name: str, runs_dir: Path, field: str) -> Path | None:
    """The folder of a name; None for a hub id."""
    if kind_of(name) == "dataset":
        return pretrained_folder(name).resolve()
    if kind_of(name) == "run":
        return _final_of(name, runs_dir, field)
    folder = Path(name).expanduser()
    return folder.resolve() if folder.is_dir() else None


def _final_of(name: str, runs_dir: Path, field: str) -> Path:
    for run in _finished(name, runs_dir):
        if (run.final / "config.json").is_file():
            return run.final
    raise _no_run(name, runs_dir, field)


def _finished(name: str, runs_dir: Path) -> Iterator[RunFolder]:
    """The finished runs of the recipe that `run:NAME` names, newest first."""
    for run in list_runs(runs_dir):
        info = run.info()
        if info.name == name.removeprefix(RUN) and info.state == "finished":
            yield run


def _no_run(name: str, runs_dir: Path, field: str) -> UsageError:
    wanted = name.removeprefix(RUN)
    return UsageError(f"{field}: {runs_dir} has no finished run of the recipe {wanted}; {launch_advice(name)}.")


def _adapter(name: str, runs_dir: Path) -> Path:
    """The folder of an adapter; that of a run is written to the run's folder if it is not there yet."""
    if kind_of(name) != "run":
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise UsageError(f"{_ADAPTER}: no folder {name!r}; relative paths start at the current folder.")
        return folder.resolve()
    run = next(_finished(name, runs_dir), None)
    if run is None:
        raise _no_run(name, runs_dir, _ADAPTER)
    if not (run.adapter / "adapter_config.json").is_file():
        # Imported late, because it imports torch.
        from shardyard.engine.inference.adapter import export_adapter

        try:
            export_adapter(run, None, run.adapter)
        except (UsageError, ModelError) as error:
            raise UsageError(f"{_ADAPTER}: {name} cannot be continued: {error}") from error
    return run.adapter


def _is_exported(name: str, runs_dir: Path) -> bool:
    run = next(_finished(name, runs_dir), None)
    return run is not None and (run.adapter / "adapter_config.json").is_file()


def _check_base(found: dict[str, WeightsInfo]) -> None:
    """Refuse the adapter of a run beside other weights than those that the run adapted.

    Raises:
        UsageError: the weights are others.
    """
    adapter, base = found[_ADAPTER], found.get("model.pretrained")
    if base is None or kind_of(adapter["name"]) != "run":
        return
    run = RunFolder(Path(adapter["path"]).parent)
    earlier = run.info().starting.get("model.pretrained", {})
    key: Literal["sha256", "path"] = "sha256" if "sha256" in base else "path"
    if ("sha256" in earlier) == ("sha256" in base) and earlier.get(key) != base[key]:
        raise UsageError(
            f"{_ADAPTER}: {run.id} adapted {earlier.get('path')}, and model.pretrained is {base['path']}, which has "
            f"other weights; set model.pretrained to {earlier.get('path')}."
        )


def _fingerprint(path: Path) -> str:
    # Imported late, because it imports torch, and most recipes have no initial weights.
    from shardyard.models.pretrained import fingerprint

    return fingerprint(path)


def _commit(name: str, field: str) -> str | None:
    from shardyard.models.pretrained import hub_commit

    try:
        return hub_commit(name)
    except (OSError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{field}: {name} cannot be loaded from the hub: {first}") from error
