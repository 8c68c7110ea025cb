"""The scheduler of docs/jobs.md, taken from the page."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from shardyard.launch.schedulers import registry
from shardyard.launch.schedulers.base import Scheduler
from support.docs.pages import blocks

BEGINNING = "# processes.py\n"


@contextmanager
def example(folder: Path) -> Iterator[tuple[type[Scheduler], ModuleType]]:
    """Its class, loaded from a file as `--on` names it and registered by its name, and the module of that file."""
    (text,) = (block.text for block in blocks() if block.page == "docs/jobs.md" and block.text.startswith(BEGINNING))
    path = folder / "processes.py"
    path.write_text(text, encoding="utf-8")
    scheduler = registry.scheduler_class(f"{path}:ProcessScheduler")
    registry.register("processes", scheduler)
    try:
        yield scheduler, sys.modules[scheduler.__module__]
    finally:
        registry.unregister("processes")
