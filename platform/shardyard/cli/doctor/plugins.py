"""The check of entry points of installed packages: whether they can be imported.

They are imported in a separate process (`python -m` this module): doctor itself must not import torch and the like.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import get_args

from shardyard import plugins
from shardyard.cli.doctor.probe import Check
from shardyard.errors import UsageError

IMPORT_SECONDS = 120.0


def check_plugins() -> Iterator[Check]:
    """One line for all usable entry points, and one for each unusable one, with the reason."""
    if not any(plugins.brought(kind) for kind in get_args(plugins.Kind)):
        yield Check("plugins", "ok", "no installed package brings models, objectives or the like")
        return
    command = [sys.executable, "-m", "shardyard.cli.doctor.plugins"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=IMPORT_SECONDS, check=True)
        found: list[list[str]] = json.loads(done.stdout.splitlines()[-1])
    except (OSError, ValueError, IndexError, subprocess.SubprocessError) as error:
        yield Check("plugins", "warn", f"what installed packages bring cannot be examined: {error}")
        return
    good = [f"{name} ({kind}, {package})" for kind, name, package, problem in found if not problem]
    if good:
        yield Check("plugins", "ok", ", ".join(good))
    for kind, name, package, problem in found:
        if problem:
            detail = f"{name} of shardyard.{kind}, brought by {package}, cannot be used: {problem}"
            yield Check("plugins", "warn", detail, "Mend or uninstall the package; runs that do not name it work.")


def examined() -> list[list[str]]:
    """(kind, name, package, problem or "") of each entry point."""
    from shardyard.data.formats import FORMATS
    from shardyard.launch.schedulers.registry import BUILT_IN
    from shardyard.objectives.registry import OBJECTIVES
    from shardyard.recipe.code import TRACKERS

    ours = {"objectives": OBJECTIVES, "formats": FORMATS, "trackers": TRACKERS, "schedulers": tuple(BUILT_IN)}
    return [
        [kind, point.name, plugins.package_of(point), _problem(kind, point.name, ours.get(kind, ()))]
        for kind in get_args(plugins.Kind)
        for point in plugins.brought(kind)
    ]


def _problem(kind: plugins.Kind, name: str, ours: tuple[str, ...]) -> str:
    try:
        reference = plugins.find(kind, name, ours)
        assert reference is not None, "an entry point has this name"
        plugins.load(reference)
    except UsageError as error:
        return str(error).removesuffix(".")
    return ""


if __name__ == "__main__":
    sys.stdout.write(f"\n{json.dumps(examined())}\n")
