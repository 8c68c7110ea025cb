"""Copies of a recipe's code files in the run folder: the run trains and resumes with these copies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from shardyard import plugins
from shardyard.errors import RunFolderError, UsageError
from shardyard.recipe.code import CODE_FOLDER, CODE_TABLE, kept_files, lead_to_kept, origins, replace_files
from shardyard.recipe.schema import Recipe
from shardyard.tracking.files import write_atomically
from shardyard.tracking.run.events import Notice, write_event
from shardyard.tracking.run.folder import RunFolder


def keep_code(recipe: Recipe, folder: RunFolder) -> Recipe:
    """The recipe with references to copies of its files in the run folder; missing copies are created.

    Raises:
        UsageError: a file does not exist. RunFolderError: the folder cannot be written.
    """
    data, root = recipe.model_dump(), folder.path.resolve()
    changed = lead_to_kept(data, root)
    texts: dict[str, str] = {}

    def copy(where: Path) -> Path | None:
        if where.is_relative_to(root / CODE_FOLDER):
            return None
        source = where.expanduser()
        try:
            text = source.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UsageError(f"{where}, which the recipe names as code, cannot be read: {error}") from error
        texts[str(where)] = texts[str(source.resolve())] = text
        return root / CODE_FOLDER / _relative(where, text)

    changed |= replace_files(data, copy)
    store_code(texts, folder)
    return Recipe.model_validate(data) if changed else recipe


def store_code(texts: Mapping[str, str], folder: RunFolder) -> None:
    """Store the texts of files, by their paths in the recipe.

    Raises:
        RunFolderError: the folder cannot be written.
    """
    root = folder.path.resolve() / CODE_FOLDER
    known = kept_files(folder.path)
    new = {path: text for path, text in texts.items() if path not in known}
    if not new:
        return
    table = {**known, **{path: _relative(Path(path), text) for path, text in new.items()}}
    try:
        for path, text in new.items():
            target = root / table[path]
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(target, text)
        write_atomically(root / CODE_TABLE, json.dumps(table, indent=2, sort_keys=True) + "\n")
    except OSError as error:
        raise RunFolderError(f"the code that the recipe names cannot be kept in {root}: {error.strerror}") from error


def report_changed_code(recipe: Recipe, folder: RunFolder) -> None:
    """Write an event about code that has changed since the run began, and record code that was not named before.

    Args:
        recipe: with references to kept files.
    """
    provenance = folder.info().provenance
    before = dict(provenance.get("code") or {})
    now = origins(recipe)
    for field, origin in now.items():
        known = before.get(field)
        if known is not None and (text := _change(field, known, origin)) is not None:
            write_event(folder.events, Notice(text=text))
    new = {field: origin for field, origin in now.items() if field not in before}
    # Before the first attempt of a job nothing is recorded; its driver will do that.
    if new and provenance:
        folder.update(provenance={**provenance, "code": {**before, **new}})


def _change(field: str, before: Mapping[str, str | None], now: Mapping[str, str | None]) -> str | None:
    reference = str(before.get("reference"))
    where = Path(reference.rpartition(":")[0])
    if plugins.is_file_reference(reference):
        same = not where.is_file() or plugins.sha256_of([where]) == before.get("sha256")
        kept = f"{field}: {where} has changed since the run began; the run goes on with the copy in {CODE_FOLDER}/"
        return None if same else kept
    if before.get("sha256") == now["sha256"]:
        return None
    was, is_now = before.get("package") or reference, now["package"] or now["reference"]
    return f"{field}: the code of {was} has changed since the run began; the run goes on with {is_now} as it is now"


def _relative(path: Path, text: str) -> str:
    return f"{hashlib.sha256(text.encode()).hexdigest()[:12]}/{path.name}"
