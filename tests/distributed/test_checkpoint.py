"""Checkpoints of two ranks: full disks, damage, and runs of another shape. Nothing may hang and nothing may be lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed

from shardyard.data.stream.streams import StreamStates
from shardyard.engine.checkpoint import files
from shardyard.engine.checkpoint.checkpoint import Checkpointer, Saved, TrainerState
from shardyard.engine.checkpoint.weights import weights_of_checkpoint
from shardyard.engine.run import Job, run_rank
from shardyard.engine.world import Rank
from shardyard.errors import CheckpointError, ShardyardError
from shardyard.launch.run.prepare import prepare
from shardyard.tracking.run.folder import RunFolder, read_metrics
from support.forged import digest_of, forge, to_first_layout, with_code
from support.ranks import run_ranks
from support.tiny import tiny_job, tiny_recipe, write_corpus

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def events(folder: RunFolder, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in folder.events.read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def good(checkpoints: Path) -> list[str]:
    """Names of all checkpoints that look whole; they must be."""
    found = files.committed_checkpoints(checkpoints)
    for folder in found:
        assert files.damaged_files(folder, files.read_manifest(folder)) == []
    return [folder.name for folder in found]


# Full disks

DISK_BYTES = 2 << 20
# Free bytes at the checkpoint of each step: the disk fills up in a folder, in a small file, in a rank's large file, ….
FREE_BYTES = [0, 4096, 3 << 14, 1 << 16, 1 << 17, 300_000, DISK_BYTES, 400_000, 500_000]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of two megabytes; mounting one takes root."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def leave_free(disk: Path, free_bytes: int) -> None:
    """Fill a disk up to so many bytes."""
    filler = disk / "filler"
    filler.unlink(missing_ok=True)
    left = os.statvfs(disk)
    room = left.f_bavail * left.f_frsize - free_bytes
    if room > 0:
        filler.write_bytes(bytes(room))


def on_a_full_disk(rank: Rank, jobs: list[Job], disk: Path) -> list[tuple[str, list[tuple[int, str]]]]:
    """Outcome of each job and the errors of its checkpoints, by step."""
    begin, finish = Checkpointer.begin, Checkpointer.finish
    errors: list[tuple[int, str]] = []

    def watched_begin(checkpointer: Checkpointer, state: TrainerState, streams: StreamStates) -> None:
        if rank.is_first:
            leave_free(disk, FREE_BYTES[state.step - 1] if state.step <= len(FREE_BYTES) else DISK_BYTES)
        distributed.barrier()
        watched.append(state.step)
        begin(checkpointer, state, streams)

    def watched_finish(checkpointer: Checkpointer) -> Saved:
        try:
            return finish(checkpointer)
        except CheckpointError as error:
            errors.append((watched[-1], str(error)))
            raise

    watched: list[int] = []
    Checkpointer.begin, Checkpointer.finish = watched_begin, watched_finish  # type: ignore[method-assign]
    results = []
    for job in jobs:
        outcome = run_rank(job, rank)
        results.append((outcome, list(errors)))
        errors.clear()
        if rank.is_first:
            (disk / "filler").unlink(missing_ok=True)
            shutil.rmtree(disk / job.folder.id)
        distributed.barrier()
    return results


def test_full_disks_cost_checkpoints_and_not_the_run(corpus: Path, tmp_path: Path, disk: Path) -> None:
    jobs = []
    for stage in (0, 2, 3):
        recipe = tiny_recipe(
            corpus,
            train={"steps": 12},
            zero={"stage": stage},
            checkpoint={"every": 1, "keep": 1, "background": stage == 2},
            cluster={"workers": 2},
        )
        job = tiny_job(recipe, tmp_path, world_size=2)
        (disk / job.folder.id).mkdir()
        job.folder.checkpoints.symlink_to(disk / job.folder.id)
        jobs.append(job)
    first, second = run_ranks(2, on_a_full_disk, jobs, disk)
    for job, (outcome, errors), (other_outcome, other_errors) in zip(jobs, first, second, strict=True):
        assert outcome == other_outcome == "finished"
        # Every rank hears the same of the same steps.
        assert errors == other_errors
        failed = [step for step, _ in errors]
        assert {1, 2, 3, 4} <= set(failed)
        assert 7 not in failed
        assert not {10, 11, 12} & set(failed), "with room again, the next checkpoint is written"
        for step, text in errors:
            assert text.startswith(f"the checkpoint of step {step} could not be written: rank ")
            assert "No space left" in text
            assert f"{job.folder.checkpoints} needs " in text
            assert "checkpoint.keep is 1" in text
        assert [event["step"] for event in events(job.folder, "checkpoint_failed")] == failed
        saved = [event["step"] for event in events(job.folder, "checkpoint")]
        assert sorted(saved + failed) == list(range(1, 13))
        assert [line["step"] for line in read_metrics(job.folder.metrics)] == list(range(1, 13))


def hardly_any_room(
    rank: Rank, jobs: list[Job], disk: Path, free_bytes: list[int]
) -> list[tuple[str, list[str], bool]]:
    """Of each job, with so many bytes free: outcome or error, names of its checkpoints, whether it has final/."""
    found = []
    for job, free in zip(jobs, free_bytes, strict=True):
        if rank.is_first:
            leave_free(disk, free)
        distributed.barrier()
        outcome = _outcome(rank, job)
        found.append((outcome, good(job.folder.checkpoints), (job.folder.final / "model.safetensors").is_file()))
        distributed.barrier()
        if rank.is_first:
            for folder in files.committed_checkpoints(job.folder.checkpoints):
                shutil.rmtree(folder)
    return found


def test_of_the_last_checkpoint_and_the_model_either_is_written_without_the_other(
    corpus: Path, tmp_path: Path, disk: Path
) -> None:
    recipe = tiny_recipe(
        corpus, train={"steps": 8}, checkpoint={"every": 1, "keep": 3}, cluster={"workers": 2}, zero={"stage": 2}
    )
    none, some = (tiny_job(recipe, tmp_path, world_size=2) for _ in range(2))
    on_disk = tiny_job(recipe, disk, world_size=2)
    for job, name in ((none, "none"), (some, "some")):
        (disk / name).mkdir()
        job.folder.checkpoints.symlink_to(disk / name)
    # One takes 0.64 MB. Room for none; for two and a half of the four that rotation wants; for two, but without final/.
    first, second = run_ranks(2, hardly_any_room, [none, some, on_disk], disk, [0, 1_650_000, 1_370_000])
    assert [outcome for outcome, *_ in first] == [outcome for outcome, *_ in second]
    error, left, has_model = first[0]
    final = none.folder.path / "final"
    assert error.startswith(
        f"CheckpointError: the trained model is in {final}, but the checkpoint of step 8 could not "
    )
    assert f"{none.folder.checkpoints} needs " in error
    assert "--runs-dir" in error
    assert (left, has_model) == ([], True)
    assert first[1] == ("finished", ["step-00000007", "step-00000008"], True)
    assert events(some.folder, "checkpoint_failed") == []
    assert [event["step"] for event in events(some.folder, "checkpoint")] == list(range(1, 9))
    freed = [event["text"] for event in events(some.folder, "notice")]
    assert freed[0] == "the disk is full: step-00000001 made room for the checkpoint of step 3"
    assert first[2] == ("finished", ["step-00000008"], True)
    assert "made room for the trained model" in events(on_disk.folder, "notice")[-1]["text"]


# Damage, and runs of another shape

STEPS = 12


def in_order(rank: Rank, jobs: list[Job]) -> list[str]:
    """The outcome of each job, or the text of its error."""
    return [_outcome(rank, job) for job in jobs]


def _outcome(rank: Rank, job: Job) -> str:
    try:
        return run_rank(job, rank)
    except ShardyardError as error:
        return f"{type(error).__name__}: {error}"


def damage(folder: Path, suffix: str) -> str:
    """Flip one bit in the middle of the one file that ends so; returns its name in the checkpoint."""
    (path,) = [path for path in folder.rglob("*") if path.name.endswith(suffix)]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return path.relative_to(folder).as_posix()


@pytest.fixture(scope="module")
def runs(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Job, str]]:
    """Name of a case → its job and what became of it: stopped after 8 of 12 steps, meddled with, and resumed."""
    folder = tmp_path_factory.mktemp("runs")
    recipe = tiny_recipe(
        corpus,
        model={"dropout": 0.1},
        train={"steps": STEPS},
        zero={"stage": 2},
        checkpoint={"every": 4},
        cluster={"workers": 2},
    )

    def changed(job: Job, **sections: dict[str, Any]) -> Job:
        other = tiny_recipe(corpus, **{"model": {"dropout": 0.1}, "train": {"steps": STEPS}, **sections})
        return replace(job, recipe=other, plan=prepare(other, job.plan.world), until=None)

    straight = tiny_job(recipe, folder, world_size=2)
    names = (
        "shard",
        "rank 1's share",
        "manifest",
        "a file too many",
        "all",
        "export",
        "shape",
        "code",
        "spoiled",
        "older",
    )
    jobs = {name: tiny_job(recipe, folder, world_size=2, until=8) for name in names}
    assert run_ranks(2, in_order, [straight, *jobs.values()])[1] == ["finished"] + ["paused"] * len(jobs)

    newest = {name: files.committed_checkpoints(job.folder.checkpoints)[-1] for name, job in jobs.items()}
    damage(newest["shard"], "rank-00001.safetensors")
    damage(newest["rank 1's share"], "data.json")
    damage(newest["manifest"], "manifest.json")
    (newest["a file too many"] / "rank-00002.safetensors").write_bytes(b"\x80")
    for checkpoint in files.committed_checkpoints(jobs["all"].folder.checkpoints):
        damage(checkpoint, "trainer.json")

    to_first_layout(newest["code"])
    own = "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    (path,) = newest["code"].rglob(f"*{own}")
    states = torch.load(path, weights_only=False)
    forge(newest["code"], path.relative_to(newest["code"]).as_posix(), with_code(states, folder / "code has run"))
    files.mark(newest["spoiled"], good=False, why="it exploded")
    to_first_layout(newest["older"])
    manifest: dict[str, Any] = {**files.read_manifest(newest["older"])}
    body = {name: value for name, value in manifest.items() if name not in ("expert_parallel", "sha256")}
    (newest["older"] / "manifest.json").write_text(json.dumps({**body, "sha256": digest_of(body)}))

    # Where the exported model is put together there is a file that no folder can replace.
    (jobs["export"].folder.path / ".final.partial").write_text("in the way")

    again = {name: replace(job, until=None) for name, job in jobs.items()}
    shape = again.pop("shape")
    again["trusted code"] = replace(again["code"], trust=True)
    again["precision"] = changed(shape, zero={"stage": 2}, train={"steps": STEPS, "precision": "bf16"})
    outcomes = run_ranks(2, in_order, list(again.values()))
    assert outcomes[0] == outcomes[1]
    found = {name: (job, text) for (name, job), text in zip(again.items(), outcomes[0], strict=True)}
    return found | {"straight": (straight, "finished")}


@pytest.mark.parametrize("case", ["shard", "rank 1's share", "manifest", "a file too many"])
def test_a_damaged_checkpoint_costs_one_interval_and_no_bit(runs: dict[str, tuple[Job, str]], case: str) -> None:
    job, outcome = runs[case]
    assert outcome == "finished"
    (notice,) = events(job.folder, "notice")
    assert notice["text"].startswith("checkpoint step-00000008 is skipped: ")
    assert [event["resumed_step"] for event in events(job.folder, "attempt")] == [None, 4]
    # The damaged one is kept for whoever wants to look, under a name that nothing takes for a checkpoint.
    assert (job.folder.checkpoints / "damaged-step-00000008").is_dir()
    assert good(job.folder.checkpoints) == ["step-00000004", "step-00000008", "step-00000012"]
    ours, theirs = (load_file(j.folder.path / "final" / "model.safetensors") for j in (job, runs["straight"][0]))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_a_checkpoint_of_an_explosion_is_passed_over_and_kept(runs: dict[str, tuple[Job, str]]) -> None:
    job, outcome = runs["spoiled"]
    assert outcome == "finished"
    assert [event["text"] for event in events(job.folder, "notice")] == [
        "checkpoint step-00000008 is skipped: it exploded"
    ]
    assert [event["resumed_step"] for event in events(job.folder, "attempt")] == [None, 4]
    assert (job.folder.checkpoints / "aside-step-00000008").is_dir()


def test_a_checkpoint_of_the_first_layout_continues_bit_for_bit(runs: dict[str, tuple[Job, str]]) -> None:
    """One from before there was an axis, which has one rank along it."""
    job, outcome = runs["older"]
    assert outcome == "finished"
    assert [event["resumed_step"] for event in events(job.folder, "attempt")] == [None, 8]
    ours, theirs = (load_file(j.folder.path / "final" / "model.safetensors") for j in (job, runs["straight"][0]))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_code_in_a_checkpoint_is_refused_by_all_ranks_unless_it_is_trusted(runs: dict[str, tuple[Job, str]]) -> None:
    job, outcome = runs["code"]
    assert outcome.startswith("CheckpointError: ")
    assert "step-00000008 holds more than tensors and plain values (os.makedirs)" in outcome
    assert "add --trust" in outcome
    assert runs["trusted code"][1] == "finished"
    assert (job.folder.path.parent / "code has run").is_dir()


def test_the_notice_names_the_file(runs: dict[str, tuple[Job, str]]) -> None:
    texts = {case: events(runs[case][0].folder, "notice")[0]["text"] for case in ("shard", "manifest")}
    assert "rank-00001.safetensors differs from the manifest" in texts["shard"]
    assert "manifest.json" in texts["manifest"]


def test_without_any_whole_checkpoint_the_run_says_so(runs: dict[str, tuple[Job, str]]) -> None:
    job, outcome = runs["all"]
    assert outcome.startswith(f"CheckpointError: no checkpoint in {job.folder.checkpoints} is usable")
    assert "--step 0` starts from the beginning" in outcome
    assert len(events(job.folder, "notice")) == 2
    # Nothing is renamed: a run that starts anew by accident would be worse than one that does not start.
    names = [folder.name for folder in files.committed_checkpoints(job.folder.checkpoints)]
    assert names == ["step-00000004", "step-00000008"]
    # Its weights can be exported for as long as they are whole.
    newest, weights = job.folder.checkpoints / "step-00000008", "rank-00000.safetensors"
    assert weights_of_checkpoint(newest, precision="fp32").keys()
    assert damage(newest, weights) == weights
    with pytest.raises(CheckpointError, match=f"step-00000008 is damaged: {weights}; use an older checkpoint"):
        weights_of_checkpoint(newest, precision="fp32")


def test_a_model_that_cannot_be_exported_fails_on_every_rank(runs: dict[str, tuple[Job, str]]) -> None:
    job, outcome = runs["export"]
    assert outcome.startswith(f"ShardyardError: the trained model could not be written to {job.folder.path / 'final'}")
    assert f"fix the cause and run `shardyard export {job.folder.path}`" in outcome
    assert good(job.folder.checkpoints)[-1] == f"step-{STEPS:08d}"


def test_a_run_of_another_precision_is_refused_and_names_both(runs: dict[str, tuple[Job, str]]) -> None:
    job, outcome = runs["precision"]
    assert outcome.startswith("CheckpointError: ")
    assert "was written with precision fp32, this run has bf16; resume with the same precision" in outcome
    assert good(job.folder.checkpoints) == ["step-00000004", "step-00000008"]
