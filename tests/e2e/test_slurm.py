"""Jobs under a real slurmctld and slurmd: requeued, out of time, preempted, refused."""

from __future__ import annotations

import json
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from shardyard.errors import UsageError
from shardyard.launch.jobs.submission import SubmitRequest
from shardyard.launch.run.plans import plan_of
from shardyard.launch.schedulers.slurm import jobs
from shardyard.recipe.loading.load import load_recipe
from shardyard.tracking.run.folder import RunFolder
from support.cli import COMMAND, Command, write_recipe
from support.hosts import hosts
from support.slurm import Slurm, slurm_cluster
from support.tiny import write_corpus
from support.waiting import PATIENCE_SECONDS

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

STEPS = 500


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with (
        slurm_cluster(tmp_path_factory.mktemp("slurm") / "s", cpus=4) as running,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("SLURM_CONF", running.environment["SLURM_CONF"])
        yield running


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One worker; nothing but an end writes a checkpoint."""
    folder = tmp_path_factory.mktemp("recipe")
    return write_recipe(
        folder,
        write_corpus(folder),
        train={"steps": STEPS, "global_batch": 32},
        checkpoint={"every": 100_000},
        evaluate={"every": 100_000},
        cluster={"workers": 1, "gpus_per_worker": 0},
    )


def request(recipe: Path, runs: Path, *overrides: str, dry_run: Path | None = None) -> SubmitRequest:
    loaded = load_recipe(str(recipe), list(overrides))
    return SubmitRequest(
        name=str(recipe),
        overrides=overrides,
        loaded=loaded,
        plan=plan_of(loaded),
        runs_dir=runs,
        job_name="tiny",
        dry_run=dry_run,
    )


def submitted(recipe: Path, runs: Path, *overrides: str) -> tuple[str, RunFolder]:
    """Id of a job and its run."""
    job_id = jobs.submit(request(recipe, runs, *overrides), lambda text: None)
    job = jobs.state(job_id)
    assert job is not None
    assert job.run is not None
    return job_id, RunFolder(job.run)


def by_hand(cluster: Slurm, recipe: Path, folder: Path, *overrides: str, **lines: str) -> tuple[str, RunFolder]:
    """A script that was written with --dry-run, changed in places, and handed to sbatch by a person."""
    script = folder / "job.sh"
    jobs.submit(request(recipe, folder / "runs", *overrides, dry_run=script), lambda text: None)
    assert not (folder / "runs").exists()
    text = script.read_text().splitlines()
    for name, value in lines.items():
        (at,) = (index for index, line in enumerate(text) if line.startswith(f"{name}="))
        text[at] = f"{name}={value}"
    script.write_text("\n".join(text) + "\n")
    (run,) = (Path(line.partition("=")[2]) for line in text if line.startswith("run="))
    (run / "logs").mkdir(parents=True)
    return cluster.command("sbatch", "--parsable", str(script)).strip(), RunFolder(run)


def records(run: RunFolder) -> list[dict[str, Any]]:
    """Every line of metrics.jsonl, as it stands."""
    return [json.loads(line) for line in run.metrics.read_text().splitlines()] if run.metrics.exists() else []


def attempts(run: RunFolder) -> list[Any]:
    """The step from which each attempt started."""
    lines = [json.loads(line) for line in run.events.read_text().splitlines()]
    return [line["resumed_step"] for line in lines if line["kind"] == "attempt"]


def log_of(run: RunFolder) -> Path:
    return run.logs / "slurm.log"


def log(run: RunFolder) -> str:
    return log_of(run).read_text()


def processes_with(word: str) -> list[str]:
    """Command lines of this machine with the word in them."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if word in line:
            found.append(line)
    return found


def assert_nothing_runs(job_id: str) -> None:
    assert not processes_with(f"/tmp/ray-{job_id}.")
    assert not list(Path("/tmp").glob(f"ray-{job_id}.*"))


def test_requeue_and_time_limit_end_in_checkpoints(cluster: Slurm, recipe: Path, tmp_path: Path) -> None:
    """Two jobs at once on one node, each with a Ray of its own; one is requeued, the other runs out of time."""
    requeued, first = submitted(recipe, tmp_path / "first")
    limited, second = submitted(
        recipe, tmp_path / "second", "train.steps=1000000", "job.time_limit=60s", "cluster.slurm.signal_seconds=20"
    )
    assert first.info().job["slurm_job_id"] == requeued
    cluster.wait_for(lambda: len(records(first)) >= 5 and records(second), "the fifth step", log=log_of(first))
    assert cluster.state(requeued) == cluster.state(limited) == "RUNNING"

    token = first.path / "slurm" / "token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    secret = token.read_text().strip()
    assert len(secret) == 64
    assert not processes_with(secret)

    cluster.command("scontrol", "requeue", requeued)
    cluster.wait_for(lambda: cluster.state(requeued) == "PENDING", "the end of the first attempt", log=log_of(first))
    stopped = records(first)[-1]["step"]
    assert first.state == "preempted", log(first)
    assert stopped < STEPS
    assert (first.checkpoints / f"step-{stopped:08d}" / "manifest.json").exists()
    waiting = jobs.state(requeued)
    assert waiting is not None
    assert not waiting.ended
    cluster.release(requeued)

    cluster.wait_for(lambda: cluster.state(requeued) == "COMPLETED", "the second attempt", log=log_of(first))
    assert first.state == "finished"
    assert [record["step"] for record in records(first) if "train/loss" in record] == list(range(1, STEPS + 1))
    assert attempts(first) == [None, stopped]
    ended = jobs.state(requeued)
    assert ended is not None
    assert (ended.state, ended.exit_code, ended.restarts) == ("COMPLETED", 0, 1)
    assert not token.exists()

    cluster.wait_for(lambda: cluster.state(limited) == "FAILED", "the end of the limited job", log=log_of(second))
    with Command("wait", second.id, runs=second.path.parent) as command:
        assert command.finish()[0] == 124, log(second)
    stopped = records(second)[-1]["step"]
    assert (second.checkpoints / f"step-{stopped:08d}" / "manifest.json").exists()
    assert {job.id for job in jobs.jobs()} >= {requeued, limited}
    for job_id, run in ((requeued, first), (limited, second)):
        assert_nothing_runs(job_id)
        for path in run.path.rglob("*"):
            assert not path.is_file() or secret.encode() not in path.read_bytes(), path


def test_a_preempted_job_goes_back_to_the_queue(cluster: Slurm, recipe: Path, tmp_path: Path) -> None:
    """Slurm tells the steps of a job with a grace time, not its script, and would not requeue a job that obeys."""
    started = tmp_path / "started"
    entry = f"(bash -c 'trap \"exit 143\" TERM; touch {started}; while sleep 0.1; do :; done')"
    job_id, run = by_hand(cluster, recipe, tmp_path, "cluster.slurm.partition=grace", entry=entry)
    cluster.wait_for(started.exists, "Ray")
    urgent = ("sbatch", "--parsable", "--partition=high", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    other = cluster.command(*urgent).strip()
    cluster.wait_for(lambda: cluster.job(job_id)["Restarts"] == "1", "the preemption", log=log_of(run))
    assert "asked to end (preemption)" in log(run) or "goes back to the queue" in log(run)
    cluster.wait_for(lambda: cluster.state(job_id) == "PENDING", "the end of the preempted attempt")
    cluster.wait_for(lambda: cluster.state(other) == "COMPLETED", "the urgent job")
    jobs.cancel(job_id)
    cluster.wait_for(lambda: cluster.state(job_id) == "CANCELLED", "the end of the cancelled job")
    assert_nothing_runs(job_id)


def test_a_ray_that_does_not_start_fails_the_job(cluster: Slurm, recipe: Path, tmp_path: Path) -> None:
    """symmetric-run itself ends with 0 then."""
    job_id, run = by_hand(cluster, recipe, tmp_path, object_store="1")
    cluster.wait_for(lambda: cluster.state(job_id) == "FAILED", "the end of the job")
    assert cluster.job(job_id)["ExitCode"] == "1:0"
    assert "Ray did not start on n1" in log(run), log(run)
    assert_nothing_runs(job_id)


def test_two_nodes_start_as_one_cluster(recipe: Path, tmp_path: Path) -> None:
    """One rank on each of two hosts with networks of their own; the command follows the job to its end."""
    runs = tmp_path / "runs"
    settings = ("cluster.workers=2", "cluster.workers_per_node=1", "train.steps=20", "zero.stage=1")
    options = [word for setting in settings for word in ("-s", setting)]
    with hosts(tmp_path / "hosts", "a", "b") as pair, slurm_cluster(tmp_path / "s", hosts=pair) as cluster:
        first, second = pair
        command = ("submit", recipe, "--on", "slurm", "--wait", "--runs-dir", runs, *options)
        done = first.shardyard(*command, **cluster.environment)
        assert done.returncode == 0, done.stdout + done.stderr
        (run,) = (RunFolder(path) for path in runs.iterdir())
        assert run.state == "finished"
        assert f"on n[1-2]; Ray at {first.address}:" in log(run)
        assert {path.name for path in run.logs.glob("rank-*.log")} == {"rank-0.log", "rank-1.log"}
        for host in (first, second):
            assert not [process for process in host.processes() if "ray" in process.name()]


def test_what_slurm_refuses_is_said_and_leaves_nothing(cluster: Slurm, recipe: Path, tmp_path: Path) -> None:
    before = cluster.command("squeue", "--noheader", "--format=%i")
    for overrides, message in (
        (["cluster.slurm.partition=nowhere"], r"partition nowhere.*[Ii]nvalid partition.*`sinfo` lists partitions"),
        (
            ["cluster.gpus_per_worker=1", "cluster.workers=4"],
            r"1 node with 4 cores and 4 GPUs: .*not available.*`sinfo",
        ),
        (["cluster.memory_per_worker=900GiB"], r"not available.*`sinfo"),
        (["cluster.slurm.constraint=h100"], r"Invalid feature.*cluster.slurm.constraint"),
        (["cluster.slurm.options=[--nonsense]"], r"unrecognized option"),
    ):
        with pytest.raises(UsageError, match=message):
            submitted(recipe, tmp_path / "runs", *overrides)
    assert not list((tmp_path / "runs").iterdir())
    assert cluster.command("squeue", "--noheader", "--format=%i") == before
    assert jobs.state("999999") is None


def test_gpus_are_found_in_the_partition(cluster: Slurm, recipe: Path, tmp_path: Path) -> None:
    """The plan of a host without GPUs would be wrong there, so the job makes its own."""
    asked = request(recipe, tmp_path, "cluster.gpus_per_worker=null", dry_run=tmp_path / "job.sh")
    said: list[str] = []
    jobs.submit(asked, said.append)
    script = (tmp_path / "job.sh").read_text()
    assert "#SBATCH --gpus-per-node=1\n" in script
    assert '"version": ""' in script
    assert not any("no GPUs" in line for line in said)


def test_a_job_that_can_never_start_is_said_so(cluster: Slurm, recipe: Path, tmp_path: Path) -> None:
    """Through the commands; it waits for ever, and can be listed and stopped."""
    runs = tmp_path / "runs"
    too_many = ("-s", "cluster.cpus_per_worker=99", "--name", "large")
    with Command("submit", recipe, "--on", "slurm", "-q", *too_many, runs=runs) as command:
        code, printed = command.finish()
        run = command.folder.name
    assert code == 0, printed
    warning, job_id = printed.splitlines()
    assert "may never start it (PartitionConfig): 1 node with 99 cores." in warning
    listed = subprocess.run(
        [*COMMAND, "ps"], capture_output=True, text=True, check=True, timeout=PATIENCE_SECONDS
    ).stdout
    (line,) = (line for line in listed.splitlines() if line.startswith(run))
    assert line.split("\t")[1:4] == ["large", "PENDING", "Slurm: PartitionConfig"]
    assert line.endswith("\tslurm")
    with Command("stop", job_id, runs=runs) as command:
        assert command.finish()[0] == 0
    cluster.wait_for(lambda: cluster.state(job_id) == "CANCELLED", "the end of the job")
    assert RunFolder(runs / run).state == "interrupted"
