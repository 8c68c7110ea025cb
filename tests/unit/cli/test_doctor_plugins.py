"""What `shardyard doctor` says of packages that bring code: which can be used, and why others cannot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shardyard import plugins
from shardyard.cli.doctor.plugins import check_plugins
from shardyard.errors import UsageError
from shardyard.launch.schedulers import registry

GROUPS = {
    "models": {"bigram": "my_models:Bigram", "broken": "my_broken:Model", "lost": "my_models:Lost"},
    "objectives": {"causal_lm": "my_models:SPEC"},
    "schedulers": {"stuck": "my_broken:Scheduler"},
}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package with these entry points, on the path of this process and of those that it starts."""
    lines: list[str] = []
    for group, points in GROUPS.items():
        lines += [f"[shardyard.{group}]", *(f"{name} = {value}" for name, value in points.items())]
    info = tmp_path / "my_package-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.2\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "my_models.py").write_text("class Bigram: pass\n", encoding="utf-8")
    (tmp_path / "my_broken.py").write_text("import a_missing_dependency\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    plugins._entry_points.cache_clear()
    yield tmp_path
    plugins._entry_points.cache_clear()


@pytest.mark.slow
def test_doctor_lists_what_packages_bring_and_what_is_broken(installed: Path) -> None:
    good, *bad = check_plugins()
    assert (good.status, good.detail) == ("ok", "bigram (models, my-package 1.2)")
    assert [check.status for check in bad] == ["warn"] * 4
    told = [check.detail for check in bad]
    start = "of shardyard.models, brought by my-package 1.2, cannot be used"
    assert told[0].startswith("causal_lm of shardyard.objectives, brought by my-package 1.2, cannot be used")
    assert "a name that Shardyard uses itself; rename its entry point" in told[0]
    missing = "my_broken cannot be imported: there is no module 'a_missing_dependency' here"
    assert told[1] == f"broken {start}: my_broken:Model: {missing}"
    assert told[2] == f"lost {start}: my_models:Lost: my_models has no 'Lost'; valid: Bigram"
    assert told[3].startswith("stuck of shardyard.schedulers, brought by my-package 1.2")


def test_a_broken_scheduler_of_a_package_fails_only_where_it_is_named(installed: Path) -> None:
    assert "stuck" in registry.names()
    assert all(type(one).__module__.startswith("shardyard.") for one in registry.chosen())
    with pytest.raises(UsageError, match="my_broken cannot be imported: there is no module 'a_missing_dependency'"):
        registry.chosen("stuck")


def test_nothing_is_started_where_no_package_brings_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_entry_points", lambda group: ())
    (check,) = check_plugins()
    assert (check.status, check.detail) == ("ok", "no installed package brings models, objectives or the like")
