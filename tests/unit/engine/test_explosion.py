"""After an explosion: which checkpoints are taken for good, and what is told."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path

import pytest
import torch
from torch import nn

from shardyard.cli.main import run
from shardyard.engine.checkpoint import files
from shardyard.engine.checkpoint.explosion import is_spoiled, not_finite, own_parts, way_back
from shardyard.errors import CheckpointError, UsageError
from shardyard.recipe.loading.load import dump_recipe
from shardyard.tracking.run.folder import RunFolder
from support.tiny import tiny_recipe, write_corpus


def write(checkpoints: Path, step: int, **metadata: object) -> Path:
    partial = files.partial_folder(checkpoints, step)
    partial.mkdir(parents=True)
    entry = files.write_json(partial / "trainer.json", {"step": step})
    return files.commit(checkpoints, step, {"trainer.json": entry}, world_size=1, **metadata)


def names(checkpoints: Path) -> list[str]:
    return sorted(path.name for path in checkpoints.iterdir())


@pytest.mark.parametrize(
    ("losses", "step", "exploded", "spoiled"),
    [
        # Saved right before the loss that is not a number.
        ({1: 5.0, 2: 4.0}, 2, 3, True),
        # The step after it was fine.
        ({1: 5.0, 2: 4.0, 3: 3.9}, 2, 4, False),
        # Two steps of a finite explosion before it.
        ({1: 5.0, 2: 4.0, 3: 1e20, 4: 1e21}, 2, 5, True),
        ({1: 5.0, 2: 4.0, 3: 1e20, 4: 1e21}, 3, 5, True),
        ({1: 5.0, 2: 4.0, 3: 1e20, 4: 1e21}, 1, 5, False),
        # A spike that training recovers from, and losses near zero.
        ({1: 5.0, 2: 4.0, 3: 9.0}, 2, 9, False),
        ({1: 0.01, 2: 0.5}, 1, 9, False),
        # Every tenth step is recorded: what came after step 10 is not known, but that it went on is.
        ({10: 4.0}, 10, 15, False),
        ({10: 4.0}, 10, 11, True),
        ({1: math.inf, 2: math.nan}, 1, 3, True),
    ],
)
def test_weights_are_judged_by_the_loss_of_the_next_step(
    losses: dict[int, float], step: int, exploded: int, spoiled: bool
) -> None:
    assert is_spoiled(losses, step, exploded) is spoiled


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder.create(tmp_path / "runs of mine", "tiny", "", "")
    losses = {1: 5.0, 2: 4.5, 3: 4.0, 4: 3.9, 5: 1e22}
    folder.metrics.write_text("".join(json.dumps({"step": s, "train/loss": v}) + "\n" for s, v in losses.items()))
    return folder


def test_the_advice_names_the_newest_checkpoint_from_before(folder: RunFolder) -> None:
    for step in (2, 3, 4, 5):
        write(folder.checkpoints, step, good=True)
    text = way_back(folder, 0.003, 6, "the loss is nan at step 6")
    assert text.startswith("the loss is nan at step 6. Lower optimizer.lr, ")
    (command,) = text.split("`")[1::2]
    # A path, because the runs folder of whoever reads this may be another.
    assert shlex.split(command) == [
        *("shardyard", "resume", str(folder.path), "--step", "3", "-s", "optimizer.lr=0.0003"),
    ]
    found = {files.step_of(path): files.bad_because(path) for path in files.committed_checkpoints(folder.checkpoints)}
    why = "it was saved during a divergence (the loss is nan at step 6)"
    assert found == {2: None, 3: None, 4: why, 5: why}
    assert all(files.damaged_files(path, files.read_manifest(path)) == [] for path in folder.checkpoints.iterdir())


def test_without_a_good_checkpoint_the_advice_is_to_begin_anew(folder: RunFolder) -> None:
    write(folder.checkpoints, 5)
    assert "--step 0 -s optimizer.lr=0.0003` starts from the beginning" in way_back(folder, 1e30, 6, "it exploded")
    folder.metrics.unlink()
    assert "--step 0 " in way_back(folder, 1e30, 6, "it exploded")


def test_going_back_puts_later_checkpoints_by_and_removes_none(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        write(tmp_path, step)
    assert [path.name for path in files.rewind(tmp_path, 4)] == ["aside-step-00000006"]
    write(tmp_path, 6)
    assert [path.name for path in files.rewind(tmp_path, 2)] == ["aside-step-00000004", "aside-step-00000006-2"]
    assert files.rewind(tmp_path, 2) == []
    with pytest.raises(UsageError, match=r"no checkpoint of this step.*steps: 2; 0 .*aside-step-00000006-2; rename"):
        files.rewind(tmp_path, 4)
    files.rewind(tmp_path, 0)
    assert files.committed_checkpoints(tmp_path) == []
    assert len(names(tmp_path)) == 4
    with pytest.raises(UsageError, match="steps: none"):
        files.rewind(tmp_path, 2)


def test_one_that_a_person_chose_is_good(tmp_path: Path) -> None:
    files.mark(write(tmp_path, 2), good=False, why="it exploded")
    files.mark(write(tmp_path, 4), good=False, why="it exploded")
    files.rewind(tmp_path, 2)
    assert files.bad_because(tmp_path / "step-00000002") is None
    assert names(tmp_path) == ["aside-step-00000004", "step-00000002"]


def test_what_cannot_be_renamed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (2, 4):
        write(tmp_path, step)
    monkeypatch.setattr(files, "put_by", lambda folder: None)
    with pytest.raises(CheckpointError, match=r"after step 2 in .* cannot be renamed"):
        files.rewind(tmp_path, 2)


def test_room_is_made_by_the_oldest_and_the_last_good_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (2, 4, 6, 8):
        write(tmp_path, step)
    files.mark(tmp_path / "step-00000008", good=False, why="it exploded")
    free = iter([50, 100])
    monkeypatch.setattr(files, "free_bytes", lambda folder: next(free))
    assert [path.name for path in files.make_room(tmp_path, 100)] == ["step-00000002", "step-00000004"]
    monkeypatch.setattr(files, "free_bytes", lambda folder: 0)
    assert [path.name for path in files.make_room(tmp_path, 100)] == ["step-00000008"]
    assert files.make_room(tmp_path, 100) == []
    assert names(tmp_path) == ["step-00000006"]
    # One that lies elsewhere frees nothing here.
    (tmp_path / "step-00000001").symlink_to(tmp_path / "step-00000006")
    assert files.make_room(tmp_path, 100) == []


def test_weights_that_are_no_numbers_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "get_rank", lambda group: 0)
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert not_finite(own_parts(model)) == []
    with torch.no_grad():
        model[1].weight[0, 1] = math.inf
        model[0].bias[0] = math.nan
    assert not_finite(own_parts(model)) == ["0.bias", "1.weight"]
    # Codes of 4 bits are always numbers; under ZeRO-3 a rank looks at its own part.
    model[0].bias.ds_tensor = torch.zeros(1)
    model[1].weight.ds_tensor = torch.ones(1, dtype=torch.uint8)
    for parameter in (model[0].bias, model[1].weight):
        parameter.ds_numel, parameter.ds_process_group = 1, None
    assert not_finite(own_parts(model)) == []
    assert not_finite(own_parts(nn.Identity())) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_in_one_memory_are_named_alone(dtype: torch.dtype) -> None:
    """What lies between weights, and belongs to none of them, may be anything."""
    flat = torch.zeros(30, dtype=dtype)
    parts = {"a": flat[:10].view(2, 5), "b": flat[10:16], "c": flat[20:30], "d": flat[20:30].view(2, 5).T}
    flat[16:20] = math.nan
    assert not_finite(parts) == []
    for place, names in ((0, ["a"]), (9, ["a"]), (15, ["b"]), (29, ["c", "d"])):
        flat[place] = math.nan
        assert not_finite(parts) == names
        flat[place] = 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_value_counts_and_large_ones_are_numbers(dtype: torch.dtype) -> None:
    """Kernels handle the ends of a tensor in another way than its middle."""
    model = nn.Linear(67, 3, bias=False, dtype=dtype)
    largest = torch.finfo(dtype).max
    with torch.no_grad():
        for value in (math.nan, math.inf, -math.inf):
            for place in (*range(0, 201, 7), 200):
                model.weight.view(-1)[place] = value
                assert not_finite(own_parts(model)) == ["weight"], (value, place)
                model.weight.view(-1)[place] = 0.5
        model.weight.fill_(largest)
        assert not_finite(own_parts(model)) == [], "their sum is infinite"
        model.weight.view(-1)[::2] = -largest
        assert not_finite(own_parts(model)) == []


@pytest.mark.parametrize(("rank", "spoiled"), [(0, []), (1, []), (2, ["weight"])])
def test_what_fills_the_last_part_of_a_parameter_up_may_be_anything(
    monkeypatch: pytest.MonkeyPatch, rank: int, spoiled: list[str]
) -> None:
    """Under ZeRO-3, a bias of one number on two ranks leaves one of them memory that nobody wrote."""
    monkeypatch.setattr(torch.distributed, "get_rank", lambda group: rank % 2)
    model = nn.Linear(3, 1, bias=False)
    parts = {0: [1.0, 2.0], 1: [3.0, math.nan], 2: [math.nan, 2.0]}
    model.weight.ds_tensor, model.weight.ds_numel = torch.tensor(parts[rank]), 3  # type: ignore[attr-defined]
    model.weight.ds_process_group = None  # type: ignore[attr-defined]
    assert not_finite(own_parts(model)) == spoiled


def test_a_step_without_a_checkpoint_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = dump_recipe(tiny_recipe(write_corpus(tmp_path, 20)))
    folder = RunFolder.create(tmp_path / "runs", "tiny", text, text)
    write(folder.checkpoints, 4)
    write(folder.checkpoints, 8)
    assert run(["resume", str(folder.path), "--local", "--step", "5", "-s", "train.steps=30"]) == 2
    assert "available steps: 4, 8" in capsys.readouterr().err
    assert folder.resolved.read_text() == text
    assert names(folder.checkpoints) == ["step-00000004", "step-00000008"]
    assert not folder.events.exists()
