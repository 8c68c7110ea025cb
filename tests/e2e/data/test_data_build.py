"""`shardyard data build` as people run it: through Ray, killed in the middle, and read by a recipe."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from support.cli import COMMAND, write_recipe
from support.waiting import until

pytestmark = pytest.mark.slow

SPEC = Path(__file__).resolve().parents[3] / "docs" / "data" / "clean-docs.yaml"


def shardyard(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=600, check=False
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_killed_build_through_ray_ends_as_one_in_this_process(tmp_path: Path) -> None:
    pytest.importorskip("rensa", reason="the extra clean")
    out = tmp_path / "python-docs-clean"
    work = tmp_path / ".python-docs-clean.building"
    with (tmp_path / "log").open("w") as log:
        killed = subprocess.Popen([*COMMAND, "data", "build", str(SPEC)], cwd=tmp_path, stdout=log, stderr=log)
        try:
            until(
                lambda: len(list(work.glob("stage-0/*.json"))) >= 3 or killed.poll() is not None,
                lambda: (tmp_path / "log").read_text(),
            )
            assert killed.poll() is None, (tmp_path / "log").read_text()
        finally:
            os.kill(killed.pid, signal.SIGKILL)
            killed.wait()
    assert not out.exists()
    before = {path.name: path.stat().st_mtime_ns for path in work.glob("stage-0/*.json")}

    made = shardyard("data", "build", SPEC, "--workers", 2, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert not list(tmp_path.glob(".*"))
    assert len(before) >= 3
    through_ray = contents(out)
    shutil.move(out, tmp_path / "through-ray")

    alone = shardyard("data", "build", SPEC, "--local", "--json", cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    assert contents(out) == through_ray
    card = json.loads(alone.stdout)
    counts = {step["name"]: step["counts"]["removed"] for step in card["steps"]}
    assert all(counts[name] > 0 for name in ("length", "gopher_repetition", "near_duplicates", "decontaminate"))
    assert card["documents"] == sum(source["counts"]["kept"] for source in card["sources"]) > 500

    # The output is the `path` of a recipe, which may filter again.
    recipe = write_recipe(
        tmp_path, out, data={"train": [{"path": str(out), "holdout": 0.1}], "filters": [{"length": {"max": 2000}}]}
    )
    seen = shardyard("data", "inspect", recipe, "--json", cwd=tmp_path)
    assert seen.returncode == 0, seen.stderr
    (source,) = json.loads(seen.stdout)["sources"]
    assert source["documents"] > 0
    assert set(source["left_out"]["filtered"]) == {"length: more than 2000 characters"}
    assert "removed by filters: " in shardyard("data", "inspect", recipe, cwd=tmp_path).stdout


def test_wrong_uses_end_with_two(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: x\nsources: [{source: python-docs}]\nstep: []\noutput: {folder: o}\n")
    wrong = shardyard("data", "build", "a.yaml", cwd=tmp_path)
    assert (wrong.returncode, "a.yaml:3: step: unknown key 'step'; did you mean 'steps'?" in wrong.stderr) == (2, True)
    both = shardyard("data", "build", SPEC, "--local", "--workers", 2, cwd=tmp_path)
    assert (both.returncode, "--workers is for Ray" in both.stderr) == (2, True)
