"""Imports without the garbage collector."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest

from shardyard.imports import import_at_once

MODULE = "import gc\nwas_on = gc.isenabled()\n"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "imported_at_once", raising=False)
    (tmp_path / "imported_at_once.py").write_text(MODULE)
    return "imported_at_once"


@pytest.mark.parametrize("on", [True, False])
def test_the_collector_rests_while_modules_are_imported(module: str, on: bool) -> None:
    before = gc.isenabled()
    frozen = gc.get_freeze_count()
    try:
        (gc.enable if on else gc.disable)()
        import_at_once(module)
        assert sys.modules[module].was_on is False
        assert gc.isenabled() is on
        assert gc.get_freeze_count() > frozen
    finally:
        (gc.enable if before else gc.disable)()


def test_what_is_there_already_freezes_nothing(module: str) -> None:
    import_at_once(module)
    mine: list[object] = [object()]
    import_at_once(module, "json")
    # Frozen objects are not among them. Their number says nothing: some end meanwhile.
    assert any(one is mine for one in gc.get_objects())


def test_a_module_that_fails_leaves_the_collector_on(module: str, tmp_path: Path) -> None:
    (tmp_path / "imported_at_once.py").write_text("raise RuntimeError('broken')\n")
    with pytest.raises(RuntimeError, match="broken"):
        import_at_once(module)
    assert gc.isenabled()
