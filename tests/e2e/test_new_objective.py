"""What docs/objectives.md and docs/extending.md say of adding an objective, carried out word for word."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.docs.pages import REPOSITORY, blocks_of
from support.images import SIZE, image_fields, write_images

pytestmark = pytest.mark.slow

PAGE = "docs/objectives.md"
MODEL: dict[str, Any] = {
    "family": "vit",
    "config": {
        "image_size": SIZE,
        "patch_size": 3,
        "num_channels": 1,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "num_labels": 4,
    },
}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source root of a copy of the package with the objective of the page: one folder, and one name."""
    root = tmp_path_factory.mktemp("checkout")
    shutil.copytree(REPOSITORY / "platform", root / "platform", ignore=shutil.ignore_patterns("__pycache__"))
    for shared in ("recipes", "tokenizers", "cluster"):
        (root / shared).symlink_to(REPOSITORY / shared)
    house = root / "platform" / "shardyard"
    written = _python_files((REPOSITORY / PAGE).read_text(encoding="utf-8"))
    folders = {path.parent for path in written}
    assert len(folders) == 1, "adding an objective touches one folder"
    (folder,) = folders
    (house / folder).mkdir()
    (house / folder / "__init__.py").write_text('"""Prediction of the rotation of an image."""\n', encoding="utf-8")
    for path, text in written.items():
        (house / path).write_text(text, encoding="utf-8")
    registry = house / "objectives" / "registry.py"
    text = registry.read_text(encoding="utf-8")
    registered = text.replace("OBJECTIVES = (\n", f'OBJECTIVES = (\n    "{folder.name}",\n')
    assert registered != text
    registry.write_text(registered, encoding="utf-8")
    return root / "platform"


def _python_files(page: str) -> dict[Path, str]:
    """The Python blocks of "Adding one", by the path in their first line."""
    section = page[page.index("## Adding one") :]
    found = {}
    for block in blocks_of(PAGE, section):
        if block.language == "python":
            first, _, rest = block.text.partition("\n")
            named = re.fullmatch(r"# (objectives/\S+\.py)", first)
            assert named is not None, f"the block at line {block.line} says in its first line which file it is"
            found[Path(named[1])] = rest
    assert found
    return found


def _shardyard(package: Path, folder: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(package), "SHARDYARD_RUNS": str(folder / "runs")}
    command = [sys.executable, "-m", "shardyard.cli.main", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_pages_objective_is_checked_planned_trained_and_exported(package: Path, tmp_path: Path) -> None:
    """Three steps, an evaluation with its metrics, and the model card."""
    file = _write_recipe(tmp_path, tmp_path, "rotation")
    _shardyard(package, tmp_path, "validate", str(file))
    plan = json.loads(_shardyard(package, tmp_path, "plan", str(file), "--json"))
    assert plan
    _shardyard(package, tmp_path, "launch", str(file), "--local")
    _check_run(tmp_path)


def test_the_file_of_the_other_page_trains_through_ray_without_touching_the_package(tmp_path: Path) -> None:
    """It lies beside the recipe, below the current folder; its hash stands in run.json."""
    page = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")
    (source,) = (block.text for block in blocks_of("docs/extending.md", page) if block.mark == "rotation.py")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "rotation.py").write_text(source, encoding="utf-8")
    file = _write_recipe(tmp_path, tmp_path / "mine", "rotation.py:SPEC")
    _shardyard(REPOSITORY / "platform", tmp_path, "launch", str(file))
    where = f"{(tmp_path / 'mine').resolve()}/rotation.py"
    run = _check_run(tmp_path)
    code = json.loads((run / "run.json").read_text(encoding="utf-8"))["provenance"]["code"]
    digest = hashlib.sha256(b"rotation.py\0" + source.encode() + b"\0").hexdigest()
    assert code["objective"] == {"reference": f"{where}:SPEC", "package": None, "sha256": digest}
    assert code["rows"]["reference"] == f"{where}:make_rows"


def _write_recipe(folder: Path, place: Path, objective: str) -> Path:
    data = write_images(folder)
    recipe = image_fields(data, "rotation", MODEL, train={"steps": 3, "global_batch": 8, "precision": "fp32"})
    recipe |= {"objective": objective, "image": {"size": SIZE}, "schedule": {"name": "constant"}}
    recipe |= {"checkpoint": {"every": 3}, "evaluate": {"every": 3, "rows": 8}}
    file = place / "rotation.yaml"
    file.write_text(json.dumps(recipe), encoding="utf-8")
    return file


def _check_run(folder: Path) -> Path:
    """Three steps with an evaluation and its metrics, and the model card."""
    (run,) = (path.parent for path in (folder / "runs").glob("*/run.json"))
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sum("train/loss" in record for record in records) == 3
    measured = [record for record in records if "eval/validation/accuracy" in record]
    assert {"eval/validation/loss", "eval/validation/f1"} <= measured[-1].keys()
    card = (run / "final" / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: image-classification" in card
    assert "| objective | rotation |" in card
    assert "The classes are 0, 90, 180 and 270 degrees, counterclockwise." in card
    return run
