"""Processes of tests begin with all that they need: whoever asked first for the server that they are forked from."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from support.forks import fork_context

pytestmark = pytest.mark.slow
HEAVY = ("torch", "deepspeed", "shardyard.engine.run", "support.forks.preloaded")


def tell(path: Path) -> None:
    path.write_text(json.dumps([name for name in HEAVY if name in sys.modules]))


def test_a_forked_process_imports_nothing_heavy(tmp_path: Path) -> None:
    """Each would otherwise take seconds for it, without a word."""
    process = fork_context().Process(target=tell, args=(tmp_path / "modules",))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert json.loads((tmp_path / "modules").read_text()) == list(HEAVY)
