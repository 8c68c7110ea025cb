"""What is not installed is named with a command that works, since no index has Shardyard itself."""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path

import pytest

from shardyard.cli.main import run
from shardyard.errors import HardwareError, UsageError
from shardyard.extras import install_command, missing, require

REPOSITORY = Path(__file__).resolve().parents[3]


def test_the_command_names_the_libraries_of_the_extra() -> None:
    assert re.fullmatch(r"pip install 'matplotlib>=[\d.]+' 'optuna>=[\d.]+' 'scipy>=[\d.]+'", install_command("sweep"))


def test_without_metadata_it_says_how_a_clone_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", nothing)
    assert install_command("sweep") == "pip install '.[sweep]' in a clone of Shardyard"


def test_what_is_there_passes_and_what_is_not_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    require("sweep", "a search", "json")
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert missing("json", "optuna") == ["optuna"]
    with pytest.raises(UsageError, match=r"a search needs optuna, which is not installed: `pip install 'matplotlib"):
        require("sweep", "a search", "optuna")


@pytest.mark.parametrize(
    ("module", "arguments", "says"),
    [
        (
            "optuna",
            ("sweep", "sweeps/lr-batch", "-s", "search.name=bayesian", "-s", "budget.trials=4"),
            "a Bayesian search needs optuna",
        ),
        ("scipy", ("sweep", "sweeps/scaling-laws"), "the fit of a scaling law needs scipy"),
        ("plotly", ("dashboard", "--no-browser"), "the dashboard needs plotly"),
    ],
)
def test_a_command_says_it_before_it_starts_anything(
    module: str,
    arguments: tuple[str, ...],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert run([*arguments, "--runs-dir", str(tmp_path)]) == 2
    assert f"{says}, which is not installed: `pip install " in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


def test_kubernetes_and_plotly_are_named_where_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from shardyard.dashboard.web.static_files import plotly_file
    from shardyard.launch.schedulers.kuberay.api import connect

    monkeypatch.setitem(sys.modules, "kubernetes", None)
    with pytest.raises(HardwareError, match=r"`pip install 'kubernetes"):
        connect()
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(UsageError, match=r"`pip install 'plotly"):
        plotly_file()


def test_nothing_names_a_distribution_that_no_index_has() -> None:
    suffixes = {".py", ".md", ".yaml", ".sh", ".toml"}
    folders = ("platform", "docs", "cluster", "recipes", "tokenizers")
    files = [path for name in folders for path in (REPOSITORY / name).rglob("*") if path.suffix in suffixes]
    assert len(files) > 200
    wrong = re.compile(r"pip install (-\S+ )*'?shardyard\b")
    assert [str(path) for path in [*files, REPOSITORY / "README.md"] if wrong.search(path.read_text("utf-8"))] == []
