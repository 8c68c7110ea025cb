"""Which model of a run is taken, and what is said when there is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shardyard.engine.checkpoint import files
from shardyard.engine.checkpoint.blocks import FileEntry
from shardyard.engine.checkpoint.weights import weights_of_checkpoint
from shardyard.engine.inference.lm_eval import measure_run
from shardyard.engine.inference.load import export_checkpoint, load_trained
from shardyard.engine.inference.step_documents import documents_of_step
from shardyard.errors import CheckpointError, RecipeError, RunFolderError, UsageError
from shardyard.recipe.loading.load import dump_recipe
from shardyard.tracking.run.folder import RunFolder
from support.forged import write_first_manifest
from support.tiny import tiny_recipe

WEIGHTS = "engine/mp_rank_00_model_states.pt"
FILES = (WEIGHTS, "engine/zero_pp_rank_0_mp_rank_00_optim_states.pt", "trainer.json")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    # The corpus is not there: a model is sampled and exported where its data never was.
    text = dump_recipe(tiny_recipe(tmp_path / "corpus.jsonl"))
    return RunFolder.create(tmp_path, "tiny", text, text)


def write(folder: RunFolder, step: int) -> Path:
    """A checkpoint with nothing in its files."""
    checkpoint = files.committed_folder(folder.checkpoints, step)
    (checkpoint / "engine").mkdir(parents=True)
    for name in FILES:
        (checkpoint / name).write_text("{}")
    write_first_manifest(checkpoint, step=step, world_size=1, zero_stage=0)
    return checkpoint


def test_a_run_without_any_model_says_how_to_go_on(folder: RunFolder) -> None:
    for step in (None, 3):
        with pytest.raises(RunFolderError, match=f"no checkpoint yet; `shardyard resume {folder.path}`"):
            load_trained(folder, step)


def test_a_step_that_was_not_kept_names_those_that_were(folder: RunFolder, tmp_path: Path) -> None:
    for step in (9, 100):
        write(folder, step)
    with pytest.raises(RunFolderError, match=r"no checkpoint of step 7, but of 9, 100\."):
        export_checkpoint(folder, 7, tmp_path / "model")


def test_code_that_a_run_names_is_not_executed_without_trust(tmp_path: Path) -> None:
    """A run folder may come from elsewhere, with a file of its author's choice beside it."""
    proof, code = tmp_path / "executed", tmp_path / "theirs.py"
    code.write_text(f"open({str(proof)!r}, 'w')\n")
    fields = tiny_recipe(tmp_path / "corpus.jsonl").model_dump() | {"objective": f"{code}:SPEC"}
    folder = RunFolder.create(tmp_path, "theirs", "", json.dumps(fields))
    write(folder, 9)
    for step in (None, 9):
        with pytest.raises(UsageError, match=rf"objective: {code}:SPEC\), which would be executed here.*add --trust"):
            load_trained(folder, step)
    (folder.path / "final").mkdir()
    with pytest.raises(UsageError, match="add --trust"):
        load_trained(folder)
    with pytest.raises(UsageError, match="add --trust"):
        measure_run(folder, ["task"])
    with pytest.raises(UsageError, match="in a terminal: shardyard data rows"):
        documents_of_step(folder, 1, only_from=[tmp_path])
    assert not proof.exists()
    with pytest.raises(UsageError, match=r"theirs\.py has no 'SPEC'"):
        load_trained(folder, trust=True)
    assert proof.exists(), "so the code is found where it is trusted"


@pytest.mark.parametrize(("step", "name"), [(None, "step-00000100"), (9, "step-00000009")])
def test_a_damaged_checkpoint_is_named_and_exports_nothing(
    folder: RunFolder, tmp_path: Path, step: int | None, name: str
) -> None:
    for written in (9, 100):
        (write(folder, written) / WEIGHTS).write_text("[]")
    with pytest.raises(CheckpointError, match=rf"{name} is damaged: {WEIGHTS}; use an older checkpoint"):
        export_checkpoint(folder, step, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_only_files_with_weights_are_verified_for_an_export(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those of the optimizer, which are several times as large; a resumed run reads and verifies all."""
    checkpoint = write(folder, 9)
    for name in FILES:
        (checkpoint / name).write_text("[]")
    read: list[str] = []
    damaged_blocks = files.damaged_blocks

    def note(path: Path, entry: FileEntry, numbers: list[int] | None = None) -> list[int]:
        read.append(path.relative_to(checkpoint).as_posix())
        return damaged_blocks(path, entry, numbers)

    monkeypatch.setattr(files, "damaged_blocks", note)
    with pytest.raises(CheckpointError, match=f"damaged: {WEIGHTS}; use"):
        weights_of_checkpoint(checkpoint, precision="fp32")
    assert read == [WEIGHTS]
    assert files.damaged_files(checkpoint, files.read_manifest(checkpoint)) == list(FILES)
    (checkpoint / "engine" / "mp_rank_01_model_states.pt").write_text("from elsewhere")
    with pytest.raises(CheckpointError, match="mp_rank_01"):
        weights_of_checkpoint(checkpoint, precision="fp32")


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (None, RunFolderError, "cannot be read"),
        ("name: [", RunFolderError, "cannot be read"),
        ("", RecipeError, "name"),
        ("[a, list]", RecipeError, "name"),
        ("name: tiny\nbogus: 1\n", RecipeError, "bogus"),
    ],
)
def test_a_recipe_that_was_meddled_with_is_refused(
    folder: RunFolder, tmp_path: Path, text: str | None, error: type[Exception], message: str
) -> None:
    write(folder, 9)
    folder.resolved.unlink()
    if text is not None:
        folder.resolved.write_text(text)
    with pytest.raises(error, match=message) as caught:
        export_checkpoint(folder, None, tmp_path / "model")
    assert str(folder.resolved) in str(caught.value)
