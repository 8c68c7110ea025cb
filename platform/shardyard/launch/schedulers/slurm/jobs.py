"""Jobs under Slurm: submitting, listing, inspecting and cancelling them, with Slurm's commands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from shardyard.errors import ShardyardError, UsageError
from shardyard.launch.jobs.entry import run_folder
from shardyard.launch.jobs.spec import JobSpec, spec_of
from shardyard.launch.jobs.submission import Report, SubmitRequest
from shardyard.launch.schedulers.ray.jobs import uninterrupted
from shardyard.launch.schedulers.slurm.script import COMMENT, Allocation, allocation_of, render
from shardyard.planning.placement import Amount, Node
from shardyard.recipe.schema import Recipe
from shardyard.tracking.files import write_atomically
from shardyard.tracking.run.folder import RunFolder

# Time limit of one Slurm command; if the controller is down, commands fail after several timeouts of their own.
COMMAND_TIMEOUT_SECONDS = 120.0
# Large clusters ask users not to poll the controller more often.
POLL_SECONDS = 5.0
# A phrase of sbatch's message → advice.
_ADVICE = (
    ("partition", "`sinfo` lists partitions; cluster.slurm.partition chooses one"),
    ("account", "`sacctmgr show associations user=$USER` lists accounts; cluster.slurm.account chooses one"),
    ("qos", "`sacctmgr show qos` lists them; cluster.slurm.qos or job.priority chooses one"),
    ("node configuration", "`sinfo --format '%P %D nodes of %c CPUs, %m MB, %G'` shows what there is"),
    ("Memory", "`sinfo --format '%P %m MB'` shows what there is; cluster.slurm.options can hold another --mem"),
    ("gres", "`sinfo --format '%P %G'` shows where GPUs are; cluster.slurm.partition or cluster.gpus_per_worker"),
    ("time limit", "`sinfo --format '%P %l'` shows the longest; lower job.time_limit"),
    ("feature", "`sinfo --format '%P %f'` shows features; cluster.slurm.constraint chooses among them"),
)


@dataclass(frozen=True)
class SlurmJob:
    """A job as Slurm reports it.

    state: Slurm's state, such as PENDING, RUNNING, COMPLETED, FAILED, TIMEOUT, PREEMPTED, CANCELLED, NODE_FAIL.
    reason: why it waits, such as Resources or Priority; Slurm's text `None` if it does not wait.
    exit_code: of the batch script, once it has ended.
    restarts: how often it was requeued; None if Slurm no longer reports it.
    run: its run folder; None for a job not submitted by Shardyard.
    submitted, started, ended_at: seconds since 1970, if Slurm reports them.
    cpus, gpus: over all nodes.
    """

    id: str
    name: str
    state: str
    reason: str
    nodes: int
    exit_code: int | None
    restarts: int | None
    run: Path | None
    submitted: float | None = None
    started: float | None = None
    ended_at: float | None = None
    cpus: float | None = None
    gpus: float | None = None

    @property
    def ended(self) -> bool:
        """Whether it has ended; a requeued job has not."""
        return self.state in _ENDED


# Final states of a job.
_ENDED = frozenset(
    {
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "REVOKED",
        "TIMEOUT",
    }
)
# States of nodes that accept jobs, now or once others have ended.
_UP = ("idle", "mix", "alloc", "comp", "resv", "plnd")
_NODE_COLUMNS = "NodeList:128,StateCompact:32,CPUsState:48,Memory:24,AllocMem:24,Gres:256,GresUsed:256"
_MEBIBYTE = 1024**2
# Prefixes of wait reasons that mean that, as configured, no node will ever run the job.
_NEVER = ("Partition", "Invalid", "AccountNotAllowed", "QOSNotAllowed", "BadConstraints")


def _nodes_if_known() -> list[Node] | None:
    try:
        return nodes()
    except ShardyardError:
        return None


def submit(request: SubmitRequest, report: Report) -> str:
    """Submit a job, or with `dry_run` only write its script; returns its id in Slurm ("" for a script).

    Raises:
        UsageError: Slurm lacks the resources that the recipe requires, or is not installed on this host.
        ShardyardError: Slurm does not answer.
    """
    recipe = request.loaded.recipe
    spec: JobSpec = {**spec_of(request), "runs_dir": str(request.runs_dir.resolve())}
    run = Path(spec["runs_dir"]) / spec["run_id"]
    gpu = _on_gpus(recipe, planned=request.plan.world.gpu, report=report)
    if gpu != request.plan.world.gpu:
        spec["version"] = ""  # so that the job plans again on a host with the GPUs
    allocation = allocation_of(recipe, request.plan, gpu=gpu, known=_nodes_if_known())
    script = render(
        recipe,
        allocation,
        run=run,
        cwd=request.working_dir or Path.cwd(),
        name=request.job_name,
        python=sys.executable,
        spec=spec,
    )
    if request.dry_run is not None:
        _write_script(request.dry_run, script)
        report(f"by hand: mkdir -p {run / 'logs'} && sbatch {request.dry_run}")
        return ""
    _require("sbatch")
    job_id = _submit(script, spec, allocation, recipe)
    if (job := state(job_id)) is not None and job.reason.startswith(_NEVER):
        wanted = _in_words(allocation, recipe)
        report(f"Slurm took the job and may never start it ({job.reason}): {wanted}. `scancel {job_id}` takes it back")
    return job_id


def jobs() -> list[SlurmJob]:
    """This user's jobs that Shardyard submitted and Slurm still lists, in Slurm's order.

    Raises:
        ShardyardError: Slurm does not answer.
    """
    _require("squeue")
    listed = _slurm("squeue", "--me", "--noheader", "--states=all", "--format=%i|%k")
    rows = [line.strip().partition("|") for line in listed.splitlines()]
    ours = [job_id for job_id, _, comment in rows if comment.startswith(f"{COMMENT} ")]
    return [job for job_id in ours if (job := state(job_id)) is not None]


def state(job_id: str) -> SlurmJob | None:
    """The state of a job; None if Slurm has forgotten it, which without accounting happens after some minutes.

    Raises:
        ShardyardError: Slurm does not answer.
    """
    _require("scontrol")
    try:
        return _parse(_slurm("scontrol", "--oneliner", "show", "job", job_id))
    except ShardyardError as error:
        if "Invalid job id" not in str(error):
            raise
    return _from_accounting(job_id)


def of_run(run: RunFolder) -> SlurmJob | None:
    """The job of a run, from any host of the cluster; None if it has none, or Slurm has forgotten it.

    Raises:
        ShardyardError: Slurm does not answer.
    """
    job_id = run.info().job.get("slurm_job_id")
    if job_id is None or shutil.which("scontrol") is None:
        return None
    job = state(str(job_id))
    return job if job is not None and job.run == run.path else None


def cancel(job_id: str) -> None:
    """Cancel a job: a waiting one at once, a running one with SIGTERM and, KillWait seconds later, SIGKILL.

    Raises:
        UsageError: there is no such job.
        ShardyardError: Slurm does not answer.
    """
    _require("scancel")
    _slurm("scancel", job_id)


def _submit(script: str, spec: JobSpec, allocation: Allocation, recipe: Recipe) -> str:
    """Create the run folder and pass the script to sbatch. An error or Ctrl-C leaves neither behind."""
    run = Path(spec["runs_dir"]) / spec["run_id"]
    existed = run.exists()
    path = run / "slurm" / "job.sh"
    job_id = ""
    try:
        folder = run_folder(spec)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        _write_script(path, script)
        # Ctrl-C must not separate the job from its id.
        with uninterrupted():
            job_id, complaint = _sbatch(path)
            if not job_id:
                raise _refused(complaint, allocation, recipe)
            folder.update(job={**folder.info().job, "slurm_job_id": job_id})
    except BaseException:
        if job_id:
            with suppress(ShardyardError):
                cancel(job_id)
        shutil.rmtree(path.parent if existed else run, ignore_errors=True)
        raise
    return job_id


def _sbatch(script: Path) -> tuple[str, str]:
    """The id of the new job, "" if there is none, and sbatch's error output."""
    done = subprocess.run(
        ["sbatch", "--parsable", str(script)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,  # not interrupted by the terminal
    )
    lines = done.stdout.strip().splitlines()
    # `12;cluster` if there are several clusters.
    return (lines[-1].partition(";")[0] if lines and not done.returncode else ""), done.stderr


def _refused(complaint: str, allocation: Allocation, recipe: Recipe) -> ShardyardError:
    complaint = _message(complaint)
    if "contact slurm controller" in complaint.lower():
        return ShardyardError(f"Slurm does not answer: {complaint}. `scontrol ping` says whether its controller is up.")
    advice = next((text for word, text in _ADVICE if word.lower() in complaint.lower()), "`sinfo` shows what there is")
    return UsageError(f"Slurm refuses the job, which asks for {_in_words(allocation, recipe)}: {complaint}. {advice}.")


def _in_words(allocation: Allocation, recipe: Recipe) -> str:
    where = recipe.cluster.slurm.partition
    each = f"{allocation.cpus_per_node} core{'s' if allocation.cpus_per_node > 1 else ''}"
    if allocation.gpus_per_node:
        each += f" and {allocation.gpus_per_node} GPU{'s' if allocation.gpus_per_node > 1 else ''}"
    nodes = f"1 node with {each}" if allocation.nodes == 1 else f"{allocation.nodes} nodes with {each} each"
    return nodes + (f" of the partition {where}" if where else "")


def _message(complaint: str) -> str:
    """sbatch's message without its prefix, each sentence once: `sbatch: error: …` repeats most of them."""
    lines = [line.split("error:", 1)[-1].strip().rstrip(".") for line in complaint.strip().splitlines()]
    return "; ".join(dict.fromkeys(line for line in lines if line)) or "no reason given"


def _on_gpus(recipe: Recipe, *, planned: bool, report: Report) -> bool:
    """Whether workers get GPUs: as the recipe says, else if the partition has some."""
    if recipe.cluster.gpus_per_worker is not None:
        return recipe.cluster.gpus_per_worker > 0
    found = planned or _partition_has_gpus(recipe.cluster.slurm.partition)
    if not found:
        report("asking for no GPUs, because none were found; cluster.gpus_per_worker=1 asks for them")
    return found


def _partition_has_gpus(partition: str | None) -> bool:
    """Whether nodes of a partition, or of the default one, have GPUs; False if Slurm cannot be queried."""
    try:
        listed = _slurm("sinfo", "--noheader", "--format=%P|%G")
    except (ShardyardError, OSError):
        return False
    rows = [line.strip().partition("|") for line in listed.splitlines()]
    return any("gpu" in gres for name, _, gres in rows if (name == partition if partition else name.endswith("*")))


def _parse(text: str) -> SlurmJob:
    """Parse `scontrol --oneliner show job`; its field names are the same in all versions, unlike its JSON."""
    fields = dict(part.partition("=")[::2] for part in text.split() if "=" in part)
    comment = text.partition(f" Comment={COMMENT} ")[2]
    code, _, signal = fields.get("ExitCode", "0:0").partition(":")
    ended = fields["JobState"] in _ENDED
    return SlurmJob(
        id=fields["JobId"],
        name=fields["JobName"],
        state=fields["JobState"],
        reason=fields.get("Reason", "None"),
        nodes=int(fields.get("NumNodes", "1").partition("-")[0]),
        exit_code=_exit_code(int(code), int(signal)) if ended else None,
        restarts=int(fields.get("Restarts", 0)),
        run=Path(comment.split(" Power=")[0].split(" StdErr=")[0].strip()) if comment else None,
        submitted=_moment(fields.get("SubmitTime")),
        started=_moment(fields.get("StartTime")) if fields["JobState"] != "PENDING" else None,
        # For a running job this is the end of its time limit.
        ended_at=_moment(fields.get("EndTime")) if ended else None,
        cpus=float(fields["NumCPUs"].partition("-")[0]) if fields.get("NumCPUs") else None,
        gpus=_gpus(text),
    )


def _moment(text: str | None) -> float | None:
    """Seconds since 1970; Slurm prints times in this host's time zone, without naming it."""
    try:
        return datetime.fromisoformat(text or "").timestamp()
    except ValueError:  # Unknown, N/A
        return None


def _gpus(text: str) -> float | None:
    """GPUs over all nodes, from a line such as TRES=cpu=8,mem=1G,node=2,billing=8,gres/gpu=4."""
    found = re.search(r" (?:ReqTRES|TRES)=\S*?gres/gpu=(\d+)", text)
    if found is not None:
        return float(found[1])
    return 0.0 if " TRES=" in text or " ReqTRES=" in text else None


def nodes() -> list[Node]:
    """The nodes that are up, with their cores, GPUs and memory.

    Raises:
        ShardyardError: Slurm does not answer.
    """
    _require("sinfo")
    listed = _slurm("sinfo", "--noheader", "--Node", f"--Format={_NODE_COLUMNS}")
    found = {}
    for name, state_, cpus, memory, reserved, gres, used in (line.split() for line in listed.splitlines() if line):
        if not state_.rstrip("*~#!%$@^-").startswith(_UP):
            continue
        allocated, idle, _, total = (float(part) for part in cpus.split("/"))
        have = Amount(total, _gres_gpus(gres), float(memory) * _MEBIBYTE)
        free = Amount(idle, have.gpus - _gres_gpus(used), (float(memory) - float(reserved)) * _MEBIBYTE)
        assert allocated + idle <= total, "as sinfo documents CPUsState"
        found[name] = Node(name, have, free)
    return list(found.values())


def _gres_gpus(text: str) -> float:
    """The number of GPUs in a list such as gpu:a100:4(S:0-1),shard:8."""
    return float(sum(int(count) for count in re.findall(r"(?:^|,)gpu(?::[^:,(]+)?:(\d+)", text)))


def _from_accounting(job_id: str) -> SlurmJob | None:
    """A job from sacct, if accounting is enabled."""
    try:
        text = _slurm("sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={job_id}",
                      "--format=JobID,JobName,State,NNodes,ExitCode,Comment")  # fmt: skip
    except (ShardyardError, OSError):
        return None
    lines = text.strip().splitlines()
    if not lines:
        return None
    found, name, state, nodes, exits, comment = lines[-1].split("|", 5)
    code, _, signal = exits.partition(":")
    ours = comment.startswith(f"{COMMENT} ")
    return SlurmJob(
        id=found,
        name=name,
        state=state.split()[0],  # `CANCELLED by 1000`
        reason="None",
        nodes=int(nodes),
        exit_code=_exit_code(int(code), int(signal)) if state.split()[0] in _ENDED else None,
        restarts=None,
        run=Path(comment.removeprefix(f"{COMMENT} ")) if ours else None,
    )


def _exit_code(code: int, signal: int) -> int:
    """The exit code as in a shell: 128 plus the signal for a script that a signal ended."""
    return 128 + signal if signal else code


def _slurm(*command: str) -> str:
    """The output of a Slurm command.

    Raises:
        ShardyardError: the command failed; contains its message.
    """
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ShardyardError(f"`{command[0]}` did not answer in {COMMAND_TIMEOUT_SECONDS:.0f} seconds.") from error
    if done.returncode:
        raise ShardyardError(f"`{' '.join(command)}` failed: {_message(done.stderr)}.")
    return done.stdout


def _require(command: str) -> None:
    if shutil.which(command) is None:
        raise UsageError(
            f"there is no `{command}` on this host, so it is not a login node of a Slurm cluster. Submit from one, or "
            "write the script with --dry-run FILE and take it there."
        )


def _write_script(path: Path, script: str) -> None:
    try:
        write_atomically(path, script)
        os.chmod(path, 0o755)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}.") from error
