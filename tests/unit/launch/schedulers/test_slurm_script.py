"""The batch script of a job under Slurm: what it asks for, what it says, and that it is a sound shell script."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shardyard.errors import UsageError
from shardyard.launch.jobs.submission import SubmitRequest
from shardyard.launch.schedulers.base import JobHandle, JobNotFoundError, Resources
from shardyard.launch.schedulers.slurm import jobs
from shardyard.launch.schedulers.slurm.scheduler import SlurmScheduler
from shardyard.launch.schedulers.slurm.script import Allocation, allocation_of, render
from shardyard.planning.architecture import Architecture
from shardyard.planning.placement import Amount
from shardyard.planning.plan import RunPlan, World, make_plan
from shardyard.recipe.loading.load import LoadedRecipe, load_recipe
from shardyard.tracking.run.folder import RunFolder
from support.waiting import PATIENCE_SECONDS

# What a shell might make something of.
SPOILT = "it's $HOME `x` \\n'\nEND_OF_JOB_FILE\n"
GOLDEN = Path(__file__).parents[2] / "golden" / "slurm"
BODY = Path(__file__).parents[4] / "cluster" / "slurm" / "job.sh"
# A model of 100 million parameters, as far as memory counts.
SMALL = Architecture(
    family="gpt2",
    parameters=100_000_000,
    matmul_parameters=90_000_000,
    largest_block_parameters=7_000_000,
    layers=12,
    hidden_size=768,
    heads=12,
    vocabulary=50257,
    positions=8192,
)
# The file's name → recipe, overrides, and whether ranks have GPUs.
RENDERED: dict[str, tuple[str, list[str], bool]] = {
    "laptop-recipe": ("gpt/quickstart", [], False),
    "many-gpus": (
        "gpt/llama3-8b",
        ["job.time_limit=24h", "job.retries=10", "job.on_timeout=resume", "cluster.slurm.exclusive=true"],
        True,
    ),
    "every-field": (
        "gpt/gpt2-124m",
        [
            "cluster.workers=16",
            "cluster.workers_per_node=4",
            "cluster.cpus_per_worker=6",
            "cluster.slurm.partition=gpu",
            "cluster.slurm.account=nlp",
            "cluster.slurm.constraint=a100&ib",
            "cluster.slurm.signal_seconds=300",
            "cluster.slurm.setup=[module load cuda/12.8, ulimit -l unlimited]",
            "cluster.slurm.options=[--mail-type=END, --exclude=node7]",
            "job.priority=urgent",
            "job.time_limit=90m",
            "job.on_failed=resume",
            "job.on_preempted=end",
        ],
        True,
    ),
}


def made(recipe: str, overrides: list[str], *, gpu: bool) -> tuple[LoadedRecipe, RunPlan]:
    loaded = load_recipe(recipe, overrides)
    workers = loaded.recipe.cluster.workers
    return loaded, make_plan(loaded.recipe, SMALL, World(size=workers, gpu=gpu))


def asked(*overrides: str, gpu: bool = False, recipe: str = "gpt/quickstart") -> Allocation:
    loaded, plan = made(recipe, list(overrides), gpu=gpu)
    return allocation_of(loaded.recipe, plan, gpu=gpu)


def script(
    recipe: str, overrides: list[str], *, gpu: bool, run: str = "/shared/runs/first-20260102-030405-6789"
) -> str:
    loaded, plan = made(recipe, overrides, gpu=gpu)
    allocation = allocation_of(loaded.recipe, plan, gpu=gpu)
    return render(
        loaded.recipe,
        allocation,
        run=Path(run),
        cwd=Path("/shared/recipes"),
        name=loaded.recipe.name,
        python="/opt/shardyard/bin/python",
        spec={"run_id": "first", "policy": {"on_timeout": "resume"}, "recipe_text": SPOILT},
    )


@pytest.mark.parametrize("case", RENDERED)
def test_the_rendered_script_is_golden(case: str) -> None:
    recipe, overrides, gpu = RENDERED[case]
    head, line, body = script(recipe, overrides, gpu=gpu).partition("\n# What follows is the same")
    assert head + "\n" == (GOLDEN / f"{case}.sh").read_text()
    assert (line + body).lstrip("\n") == BODY.read_text()


def test_every_golden_script_belongs_to_a_case() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(RENDERED)


@pytest.mark.parametrize("case", RENDERED)
def test_shellcheck_finds_nothing(case: str, tmp_path: Path) -> None:
    recipe, overrides, gpu = RENDERED[case]
    path = tmp_path / "job.sh"
    path.write_text(script(recipe, overrides, gpu=gpu, run="/shared/my runs/it's 100%/first"))
    done = subprocess.run(
        ["shellcheck", str(path)], capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_values_reach_the_shell_as_they_are(tmp_path: Path) -> None:
    """A folder with a space, a quote and a percent sign, and an argument that a shell would expand."""
    run = "/shared/my runs/it's 100%/first"
    text = script("gpt/quickstart", [], gpu=False, run=run)
    settings = text[text.index("\nrun=") : text.index("\n# What follows")]
    printed = subprocess.run(
        ["bash", "-c", f'{settings}\nprintf "%s\\n" "$run" "${{entry[-1]}}"; job_file'],
        capture_output=True, text=True, check=True, timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    first, last, spec = printed.stdout.split("\n", 2)
    assert (first, last) == (run, f"{run}/slurm/job.json")
    assert json.loads(spec)["recipe_text"] == SPOILT
    # Slurm's own time limit ends the job; the run cannot go on inside it.
    assert json.loads(spec)["policy"] == {"on_timeout": "end"}
    # sbatch replaces %j and the like in the name of the log.
    assert '#SBATCH --output="/shared/my runs/it\'s 100%%/first/logs/slurm.log"' in text


def test_nodes_follow_from_workers() -> None:
    assert asked("cluster.workers=8", "cluster.cpus_per_worker=3").cpus_per_node == 24
    assert asked("cluster.workers=16", gpu=False).nodes == 1
    many = asked("cluster.workers=16", gpu=True)
    assert (many.nodes, many.gpus_per_node, many.cpus_per_node) == (2, 8, 16)
    few = asked("cluster.workers=8", gpu=True)
    assert (few.nodes, few.gpus_per_node) == (1, 8)
    spread = asked("cluster.workers=4", "cluster.placement=strict_spread")
    assert (spread.nodes, spread.cpus_per_node) == (4, 1)
    given = asked("cluster.workers=16", "cluster.slurm.nodes=4", gpu=True)
    assert (given.nodes, given.gpus_per_node) == (4, 4)
    shared = asked("cluster.workers=1", "cluster.gpus_per_worker=0.25", gpu=True)
    assert shared.gpus_per_node == 1
    with pytest.raises(UsageError, match=r"cluster.slurm.nodes is 2 with 4 workers each"):
        asked("cluster.workers=16", "cluster.slurm.nodes=2", "cluster.workers_per_node=4")


def test_memory_follows_from_the_plan() -> None:
    gib = 1024**3
    assert asked("cluster.workers=2", "cluster.memory_per_worker=5GiB").memory_bytes == 13 * gib
    one, two = asked("cluster.workers=1").memory_bytes, asked("cluster.workers=2").memory_bytes
    assert one is not None
    assert two is not None
    assert 5 * gib < one < two < 20 * gib
    assert asked("cluster.slurm.exclusive=true").memory_bytes is None
    # Weights that every rank builds whole count once a rank; at stage 3 nobody does.
    split = asked("cluster.workers=2", "zero.stage=3", gpu=True).memory_bytes
    whole = asked("cluster.workers=2", "zero.stage=0", gpu=True).memory_bytes
    assert split is not None
    assert whole is not None
    assert split < whole


def test_slurm_leaves_time_for_the_last_checkpoint() -> None:
    assert asked().minutes is None
    # 90 minutes, 120 seconds for the checkpoint, and a minute by which Slurm may be early.
    assert asked("job.time_limit=90m").minutes == 93
    assert asked("job.time_limit=10s", "cluster.slurm.signal_seconds=30").minutes == 2


def test_lines_that_would_break_the_script_are_refused() -> None:
    with pytest.raises(UsageError, match=r"cluster.slurm.options: .* is more than one line"):
        script("gpt/quickstart", ['cluster.slurm.options=["--mail-type=END\\nrm"]'], gpu=False)


def request(tmp_path: Path, *overrides: str, **fields: Any) -> SubmitRequest:
    loaded, plan = made("gpt/quickstart", list(overrides), gpu=False)
    values: dict[str, Any] = {"name": "gpt/quickstart", "overrides": overrides, "loaded": loaded, "plan": plan}
    return SubmitRequest(**values, runs_dir=tmp_path / "runs", job_name="job", **fields)


def test_a_dry_run_writes_the_script_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where there is no Slurm."""
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable))
    said: list[str] = []
    target = tmp_path / "job.sh"
    assert jobs.submit(request(tmp_path, dry_run=target, run_id="mine"), said.append) == ""
    assert f"run={tmp_path / 'runs' / 'mine'}\n" in target.read_text()
    assert stat.S_IMODE(target.stat().st_mode) & stat.S_IXUSR
    assert [path.name for path in tmp_path.iterdir()] == ["job.sh"]
    assert any("sbatch" in line for line in said)


def test_without_slurm_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"no `sbatch` on this host.*--dry-run"):
        jobs.submit(request(tmp_path), lambda text: None)
    assert not (tmp_path / "runs").exists()


def test_nodes_as_sinfo_lists_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a partition, with a mark behind the state of nodes that change; those that are down hold nothing."""
    rows = [
        "n1 mix 24/8/0/32 128000 64000 gpu:a100:4(S:0-1),shard:8 gpu:a100:3(IDX:0-2),shard:0",
        "n1 mix 24/8/0/32 128000 64000 gpu:a100:4(S:0-1),shard:8 gpu:a100:3(IDX:0-2),shard:0",
        "n2 idle~ 0/16/0/16 64000 0 (null) (null)",
        "n3 down* 0/0/16/16 64000 0 gpu:2 gpu:0",
    ]
    monkeypatch.setattr(jobs, "_require", lambda command: None)
    monkeypatch.setattr(jobs, "_slurm", lambda *command: "".join(f"{row} \n" for row in rows))
    first, second = jobs.nodes()
    assert (first.id, first.total, first.free) == (
        "n1",
        Amount(32.0, 4.0, 128000 * 1024**2),
        Amount(8.0, 1.0, 64000 * 1024**2),
    )
    assert (second.id, second.free) == ("n2", Amount(16.0, 0.0, 64000 * 1024**2))


SHOWN = (
    "JobId=12 JobName=tiny UserId=me(1) JobState={state} Reason=Resources Restarts=0 ExitCode={exit} "
    "SubmitTime=2026-01-02T03:04:05 StartTime=2026-01-02T03:05:05 EndTime=2026-01-02T03:06:05 NumNodes=2 NumCPUs=8 "
    "TRES=cpu=8,mem=1G,node=2,billing=8,gres/gpu=4 Command=job.sh Comment={comment} {run} Power="
)


@pytest.mark.parametrize(
    ("state", "exit_code", "expected", "code"),
    [
        ("PENDING", "0:0", "PENDING", None),
        ("RUNNING", "0:0", "RUNNING", None),
        ("COMPLETING", "0:0", "RUNNING", None),
        ("COMPLETED", "0:0", "SUCCEEDED", 0),
        ("CANCELLED", "0:0", "STOPPED", 130),
        ("CANCELLED", "0:15", "STOPPED", 143),
        ("FAILED", "130:0", "STOPPED", 130),
        ("FAILED", "124:0", "FAILED", 124),
        ("NODE_FAIL", "1:0", "FAILED", 1),
        ("TIMEOUT", "0:15", "FAILED", 143),
    ],
)
def test_states_of_slurm_in_the_words_of_all_schedulers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, exit_code: str, expected: str, code: int | None
) -> None:
    shown = SHOWN.format(state=state, exit=exit_code, comment=jobs.COMMENT, run=tmp_path / "tiny-1")
    monkeypatch.setattr(jobs, "_require", lambda command: None)
    monkeypatch.setattr(jobs, "_slurm", lambda *command: shown)
    found = SlurmScheduler().status(JobHandle("slurm", "12"))
    assert (found.state, found.native_state, found.exit_code) == (expected, state, code)
    assert found.job == JobHandle("slurm", "12", "tiny-1", tmp_path / "tiny-1")
    assert found.resources == Resources(2, 8.0, 4.0)
    assert found.submitted is not None
    assert found.started == (None if state == "PENDING" else found.submitted + 60)
    assert found.ended_at == (found.submitted + 120 if found.ended else None)


def test_a_job_that_slurm_has_forgotten_ended_as_its_folder_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "state", lambda job_id: None)
    run = RunFolder.create(tmp_path, "tiny", "", "", job={"slurm_job_id": "12", "name": "mine"})
    handle = SlurmScheduler.recorded_in(run)
    assert handle == JobHandle("slurm", "12", run.id, run.path)
    with pytest.raises(JobNotFoundError, match="Slurm knows no job '12' of Shardyard"):
        SlurmScheduler().status(handle)
    run.update(state="finished", exit_code=0)
    found = SlurmScheduler().status(handle)
    assert (found.state, found.name, found.exit_code) == ("SUCCEEDED", "mine", 0)
