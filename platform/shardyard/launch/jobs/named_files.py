"""Files that a recipe names by relative path, and the check that a job will find them."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from shardyard.errors import UsageError
from shardyard.launch.jobs.files import select
from shardyard.recipe.schema import Recipe

# How a job accesses files that a recipe names by relative path: they `travel` with it (--working-dir), its nodes
# `share` the folder of submission, or it sees `none` of them.
Files = Literal["travel", "share", "none"]
_FIELDS = ("path", "tokenizer", "pretrained", "teacher")


def refuse_unseen_files(recipe: Recipe, files: Files, working_dir: Path | None) -> None:
    """Check that every relative path or pattern of the recipe matches files where the job runs.

    Args:
        files: see `Files`.

    Raises:
        UsageError: one of them matches none.
    """
    for field, pattern in relative_files(recipe):
        if files == "none":
            raise UsageError(
                f"{field} is {pattern}, local files, which pods do not see: put them into the image or onto the volume "
                "of the runs, and give their absolute path there."
            )
        if files == "travel" and working_dir is None:
            raise UsageError(
                f"{field} is {pattern}, local files, which the cluster does not see: upload the folder with "
                "--working-dir ., or give an absolute path that all nodes see."
            )
        if working_dir is None:
            continue
        found = [Path(name) for name in glob.glob(pattern, root_dir=working_dir, recursive=True)]
        if not found:
            raise UsageError(
                f"{field} is {pattern}, and --working-dir {working_dir} has no such files: name the folder that the "
                "path starts from, or give an absolute path that all nodes see."
            )
        if files == "travel" and not _travels(working_dir.expanduser().absolute(), found):
            raise UsageError(
                f"{field} is {pattern}, whose files in {working_dir} are not uploaded, because they are ignored there: "
                "change the ignore rules, or give an absolute path that all nodes see."
            )


def relative_files(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Fields with the relative path, or a pattern, of existing local files."""
    for field, value in _texts(recipe.model_dump(), ""):
        leaf = field.rpartition(".")[2]
        if leaf not in _FIELDS or Path(value).is_absolute():
            continue
        # A name without a slash or a suffix, such as `bytes`, is not a path even if a file has that name.
        is_path = "/" in value or bool(Path(value).suffix) or glob.has_magic(value)
        if is_path and glob.glob(value, recursive=True):
            yield field, value


def _travels(folder: Path, found: list[Path]) -> bool:
    """Whether one of these files, or a file in one of these folders, is packed."""
    wanted = [Path(os.path.normpath(folder / path)) for path in found]
    packed = {path for path, _ in select(folder, ()).files}
    return any(path in packed or any(path in other.parents for other in packed) for path in wanted)


def _texts(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from ((f"{where}", text) for where, text in _texts(item, f"{path}[{index}]"))
    elif isinstance(value, str):
        yield path, value
