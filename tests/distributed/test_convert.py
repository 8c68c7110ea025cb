"""Checkpoints in other layouts: every value as it was, by DeepSpeed's own converters, and no half-written folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import typer
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from safetensors.torch import load_file

from shardyard.cli.main import app
from shardyard.engine.checkpoint import files
from shardyard.engine.checkpoint.convert import whole as convert
from shardyard.engine.checkpoint.convert.whole import read_whole, same_bits
from shardyard.engine.checkpoint.shards import opened
from shardyard.engine.run import run_rank
from shardyard.engine.world import Rank
from shardyard.errors import CheckpointError, UsageError
from shardyard.tracking.run.folder import RunFolder
from support.ranks import run_ranks
from support.tiny import tiny_job, tiny_recipe, write_corpus

pytestmark = pytest.mark.slow
STAGES = (0, 2, 3)


def train(rank: Rank, jobs: list) -> None:  # type: ignore[type-arg]
    for job in jobs:
        run_rank(job, rank)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, RunFolder]:
    """Two steps of two ranks, by ZeRO stage."""
    folder = tmp_path_factory.mktemp("convert")
    corpus, jobs = write_corpus(folder), []
    for stage in STAGES:
        precision = "bf16" if stage == 2 else "fp32"
        recipe = tiny_recipe(
            corpus,
            train={"steps": 2, "precision": precision},
            schedule={"warmup": 1},
            zero={"stage": stage},
            cluster={"workers": 2},
        )
        jobs.append(tiny_job(recipe, folder / "runs", world_size=2))
    run_ranks(2, train, jobs)
    return {stage: job.folder for stage, job in zip(STAGES, jobs, strict=True)}


def call(run: RunFolder, folder: Path, *words: str) -> None:
    arguments = ["checkpoint", "convert", str(run.path), str(folder), *words]
    typer.main.get_command(app).main(args=arguments, standalone_mode=False)


def as_deepspeed(run: RunFolder, folder: Path) -> Path:
    """The newest checkpoint as the files that DeepSpeed would have written."""
    shards = opened(files.committed_checkpoints(run.checkpoints)[-1])
    (folder / "tag").mkdir(parents=True)
    for name in shards.names:
        torch.save(shards.read(name), folder / "tag" / name)
    (folder / "latest").write_text("tag")
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_whole_states_are_those_of_deepspeeds_own_converter(
    runs: dict[int, RunFolder], tmp_path: Path, stage: int, capsys: pytest.CaptureFixture[str]
) -> None:
    call(runs[stage], tmp_path / "out", "--to", "states")
    assert "every value is that of step-00000002" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "exp_avg.safetensors",
        "exp_avg_sq.safetensors",
        "model.safetensors",
        "state.json",
    ]
    state = json.loads((tmp_path / "out" / "state.json").read_text())
    assert (state["step"], state["global_steps"]) == (2, 2)
    assert {one["step"] for one in state["scalars"].values()} == {2.0}
    ours = load_file(tmp_path / "out" / "model.safetensors")
    moments = load_file(tmp_path / "out" / "exp_avg.safetensors")
    assert moments.keys() <= ours.keys()
    if stage == 0:
        theirs = load_file(runs[0].final / "model.safetensors")
        assert all(same_bits(ours[name], tensor) for name, tensor in theirs.items())
        return
    theirs = get_fp32_state_dict_from_zero_checkpoint(str(as_deepspeed(runs[stage], tmp_path / "deepspeed")))
    assert set(moments) <= set(theirs)
    for name, tensor in theirs.items():
        assert name not in ours or same_bits(ours[name], tensor.float()), name
    # The universal layout is made by DeepSpeed, and read by it.
    call(runs[stage], tmp_path / "universal", "--to", "universal")
    assert (tmp_path / "universal" / "latest_universal").read_text() == "global_step2"
    for name, tensor in moments.items():
        found = torch.load(tmp_path / "universal" / "global_step2" / "zero" / name / "exp_avg.pt", weights_only=True)
        found = found["param"] if isinstance(found, dict) else found
        assert same_bits(found.reshape(-1), tensor.reshape(-1)), name


def test_other_ranks_and_stages(runs: dict[int, RunFolder], tmp_path: Path) -> None:
    """Two ranks of stage 2 become one of stage 3, as if it had been saved there, documents and counters included."""
    source = files.committed_checkpoints(runs[2].checkpoints)[-1]
    call(runs[2], tmp_path / "out", "--to", "ranks", "--stage", "3", "--workers", "1")
    written = tmp_path / "out" / source.name
    manifest = files.read_manifest(written)
    assert (manifest["world_size"], manifest["zero_stage"], manifest["precision"]) == (1, 3, "bf16")
    assert files.damaged_files(written, manifest) == []
    for name in ("trainer.json", "data.json"):
        assert json.loads((written / name).read_text()) == json.loads((source / name).read_text())
    assert [path.name for path in (tmp_path / "out").iterdir()] == [source.name]


def test_what_is_not_converted_leaves_nothing(
    runs: dict[int, RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with pytest.raises(
        UsageError, match=r"universal layout is that of Adam at ZeRO stages 1 to 3, and .* ZeRO stage 0"
    ):
        call(runs[0], out, "--to", "universal")
    with pytest.raises(UsageError, match="has no checkpoint of step 7"):
        call(runs[0], out, "--to", "weights", "--step", "7")
    with pytest.raises(UsageError, match="belong to --to ranks"):
        call(runs[0], out, "--to", "weights", "--stage", "1")
    # What was written is read again.
    monkeypatch.setattr(convert.ShardFile, "write", spoiled(convert.ShardFile.write))
    with pytest.raises(CheckpointError, match=r"in model\.safetensors differs from the checkpoint"):
        call(runs[3], out, "--to", "weights")
    assert list(tmp_path.iterdir()) == []
    out.mkdir()
    with pytest.raises(UsageError, match="exists already"):
        call(runs[3], out, "--to", "weights")


def spoiled(plain):  # type: ignore[no-untyped-def]
    def write(file, name, tensor):  # type: ignore[no-untyped-def]
        plain(file, name, tensor + 1 if name.endswith("bias") else tensor)

    return write


def test_a_damaged_checkpoint_is_not_converted(runs: dict[int, RunFolder], tmp_path: Path) -> None:
    copy = tmp_path / "step-00000002"
    shutil.copytree(files.committed_checkpoints(runs[3].checkpoints)[-1], copy)
    path = copy / "rank-00001.safetensors"
    text = bytearray(path.read_bytes())
    text[-5] ^= 1
    path.write_bytes(text)
    with pytest.raises(CheckpointError, match=r"is damaged: rank-00001\.safetensors; convert an older one"):
        read_whole(copy, list)
