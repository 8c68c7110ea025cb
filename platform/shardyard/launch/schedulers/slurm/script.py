"""The batch script of a job under Slurm, as a pure function of the recipe and its run folder."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from shardyard.errors import UsageError
from shardyard.launch.jobs.spec import JobSpec, entry_command, limit_seconds
from shardyard.planning.host_memory import GPUS_PER_NODE, gpus_of_node, host_memory
from shardyard.planning.placement import Node, demand_of, judge, within
from shardyard.planning.plan import RunPlan
from shardyard.recipe.catalog.shipped import share_folder
from shardyard.recipe.mesh import ranks_together
from shardyard.recipe.schema import Recipe
from shardyard.units import format_bytes, parse_bytes

OBJECT_STORE_BYTES = 1024**3
# Ray's daemons, its object store, and the driver of the run.
NODE_BYTES = 2 * 1024**3 + OBJECT_STORE_BYTES
# Slurm may send its signal up to a minute early (sbatch(1), --signal).
SIGNAL_EARLY_SECONDS = 60
COMMENT = "shardyard"
_LINT = "# shellcheck disable=SC2016,SC2089,SC2090,SC2317 # shells on the nodes are given functions as text, by name"


@dataclass(frozen=True)
class Allocation:
    """The resources that the job requests from Slurm.

    memory_bytes: per node; None for all of it.
    minutes: time limit of Slurm, which leaves time to write a checkpoint after `job.time_limit`; None for the
        partition's.
    """

    nodes: int
    cpus_per_node: int
    gpus_per_node: int
    memory_bytes: int | None
    minutes: int | None


def allocation_of(recipe: Recipe, plan: RunPlan, *, gpu: bool, known: Sequence[Node] | None = None) -> Allocation:
    """The allocation for a job of `recipe`.

    Args:
        gpu: whether its workers compute on GPUs.
        known: nodes of the cluster: a worker takes no more cores than they have, unless the recipe says.

    Raises:
        UsageError: the workers do not fit on `cluster.slurm.nodes` nodes.
    """
    settings, slurm = recipe.cluster, recipe.cluster.slurm
    per_node = _workers_per_node(recipe, gpu=gpu)
    nodes = slurm.nodes or math.ceil(settings.workers / per_node)
    if nodes * per_node < settings.workers:
        raise UsageError(
            f"cluster.slurm.nodes is {nodes} with {per_node} workers each, and cluster.workers is {settings.workers}; "
            "raise it, or cluster.workers_per_node."
        )
    each = settings.gpus_per_worker if settings.gpus_per_worker is not None else float(gpu)
    return Allocation(
        nodes=nodes,
        cpus_per_node=per_node * _cores(recipe, known, per_node, gpu=gpu),
        gpus_per_node=gpus_of_node(each, per_node),
        memory_bytes=None if slurm.exclusive else _memory(recipe, plan, gpu=gpu, workers=per_node),
        minutes=_minutes(recipe),
    )


def _cores(recipe: Recipe, known: Sequence[Node] | None, per_node: int, *, gpu: bool) -> int:
    """The cores of each worker."""
    demand = replace(demand_of(recipe, gpu=gpu), most_per_node=per_node)
    if not known or demand.cpus_given:
        return int(demand.bundle.cpus)
    found = within(demand, known)
    # What fits with no number of cores is refused for what is really missing.
    return int(found.bundle.cpus) if judge(found, known).ever else 1


def render(
    recipe: Recipe, allocation: Allocation, *, run: Path, cwd: Path, name: str, python: str, spec: JobSpec
) -> str:
    """The whole script.

    Args:
        run: the run folder, absolute; the job creates it if it is missing.
        cwd: the base of the recipe's relative paths.
        name: of the job.
        python: the interpreter with Shardyard and Ray on every node.
        spec: of the run, from `jobs.spec.spec_of`; embedded in the script.

    Raises:
        UsageError: a line of the recipe cannot be embedded in the script.
    """
    body = (share_folder("cluster") / "slurm" / "job.sh").read_text(encoding="utf-8")
    lines = ["#!/bin/bash", *_title(allocation, run), *_options(recipe, allocation, run, cwd, name), ""]
    lines += [_LINT, *_setup(recipe), "", *_settings(recipe, allocation, run, python), "", *_job_file(spec), "", body]
    return "\n".join(lines)


def _workers_per_node(recipe: Recipe, *, gpu: bool) -> int:
    """Ranks per node, in whole groups that share layers."""
    settings, group = recipe.cluster, ranks_together(recipe)
    if settings.workers_per_node is not None:
        return min(settings.workers_per_node, settings.workers)
    if settings.placement == "strict_spread":
        return 1
    if settings.slurm.nodes is not None:
        return math.ceil(settings.workers / settings.slurm.nodes / group) * group
    if gpu and settings.placement != "strict_pack" and settings.workers > GPUS_PER_NODE:
        return max(group, GPUS_PER_NODE // group * group)
    return settings.workers


def _memory(recipe: Recipe, plan: RunPlan, *, gpu: bool, workers: int) -> int:
    """Memory per node: the host memory of its ranks and, without GPUs, their device memory too."""
    given = recipe.cluster.memory_per_worker
    if not gpu and given is not None:
        return workers * parse_bytes(given) + NODE_BYTES
    return host_memory(recipe, plan, workers, gpu=gpu)[0] + NODE_BYTES


def _minutes(recipe: Recipe) -> int | None:
    limit = recipe.job.time_limit
    if limit is None:
        return None
    return math.ceil((limit_seconds(limit) + recipe.cluster.slurm.signal_seconds + SIGNAL_EARLY_SECONDS) / 60)


def _title(allocation: Allocation, run: Path) -> list[str]:
    nodes = f"{allocation.nodes} node{'s' if allocation.nodes > 1 else ''}"
    log = shlex.quote(str(run / "logs" / "slurm.log"))
    return [
        f"# {run.name} on {nodes}, as `shardyard submit --on slurm` submits it. Submitted again, it goes on with the",
        "# same run: the run folder decides whether that means to launch or to resume.",
        "#",
        f"# by hand   mkdir -p {shlex.quote(str(run / 'logs'))} && sbatch THIS-FILE",
        f"# watch     tail -f {log}",
        "# stop      scancel --batch --signal=TERM JOB: ends with a checkpoint, however long that takes; `scancel JOB`",
        "#           gives it KillWait seconds for that (`scontrol show config | grep KillWait`)",
    ]


def _options(recipe: Recipe, allocation: Allocation, run: Path, cwd: Path, name: str) -> list[str]:
    slurm, job = recipe.cluster.slurm, recipe.job
    log = str(run / "logs" / "slurm.log").replace("%", "%%")
    options = {
        "job-name": name,
        "comment": f"{COMMENT} {run}",
        "chdir": cwd,
        "output": log,
        "open-mode": "append",
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos or job.priority,
        "constraint": slurm.constraint,
        "nodes": allocation.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": allocation.cpus_per_node,
        "gpus-per-node": allocation.gpus_per_node or None,
        "mem": 0 if allocation.memory_bytes is None else f"{math.ceil(allocation.memory_bytes / 1024**3)}G",
        "time": None if allocation.minutes is None else _time(allocation.minutes),
        "signal": f"B:TERM@{slurm.signal_seconds}",
    }
    lines = [f"--{option}={_quoted(str(value))}" for option, value in options.items() if value is not None]
    lines.append("--requeue" if job.on_preempted == "resume" else "--no-requeue")
    if slurm.exclusive:
        lines.append("--exclusive")
    return [f"#SBATCH {_one_line('options', line)}" for line in [*lines, *slurm.options]]


def _setup(recipe: Recipe) -> list[str]:
    lines = [f"  {_one_line('setup', line)}" for line in recipe.cluster.slurm.setup] or ["  :"]
    return ["setup() { # on each node, before anything else", *lines, "}"]


def _job_file(spec: JobSpec) -> list[str]:
    """The job file that the entry point reads. After a time limit Slurm grants a new one by requeueing the job, so the
    run does not continue automatically."""
    policy = {**spec["policy"], "on_timeout": "end"}
    fields = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in {**spec, "policy": policy}.items())
    start = ["job_file() { # the run, for shardyard.launch.jobs.entry", "  cat <<'END_OF_JOB_FILE'"]
    return [*start, f"{{{fields}}}", "END_OF_JOB_FILE", "}"]


def _settings(recipe: Recipe, allocation: Allocation, run: Path, python: str) -> list[str]:
    job, slurm = recipe.job, recipe.cluster.slurm
    entry = entry_command(str(run / "slurm" / "job.json"), python=python)
    return [
        f"run={shlex.quote(str(run))}",
        f"python={shlex.quote(python)} # the same on every node",
        f"entry=({shlex.join(entry)})",
        f"cpus={allocation.cpus_per_node} gpus={allocation.gpus_per_node} # of each node",
        f"object_store={OBJECT_STORE_BYTES} # {format_bytes(OBJECT_STORE_BYTES)}; training passes little through it",
        f"signal_seconds={slurm.signal_seconds}",
        f"retries={job.retries} on_failed={job.on_failed} on_timeout={job.on_timeout} on_preempted={job.on_preempted}",
    ]


def _time(minutes: int) -> str:
    """Days-hours:minutes, the format of sbatch."""
    return f"{minutes // 1440}-{minutes // 60 % 24:02d}:{minutes % 60:02d}"


def _quoted(value: str) -> str:
    """A value quoted for an #SBATCH line, where quotes and backslashes have the same meaning as in a shell."""
    return value if re.fullmatch(r"[\w@%+=:,./-]*", value) else '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'


def _one_line(field: str, text: str) -> str:
    if len(text.splitlines()) > 1:
        raise UsageError(f"cluster.slurm.{field}: {text!r} is more than one line; make it several entries of the list.")
    return text
