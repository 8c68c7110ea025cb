"""Jobs on a Ray cluster: submitting a recipe through Ray's Jobs API, so that Ray's own commands see them too."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from shardyard.errors import ShardyardError, UsageError
from shardyard.launch.jobs import secrets
from shardyard.launch.jobs.files import Selection
from shardyard.launch.jobs.order import position_after
from shardyard.launch.jobs.package import checked_files, in_short, listing, package
from shardyard.launch.jobs.spec import SPEC_NAME, JobSpec, entry_command, new_run_id, spec_of
from shardyard.launch.jobs.submission import Report, SubmitRequest
from shardyard.launch.local_cluster.nodes import home
from shardyard.launch.local_cluster.token import ray_token_path, token_path
from shardyard.launch.schedulers.ray.api import TERMINAL, JobsApi, RayJobBody, target
from shardyard.planning.placement import Amount, Node, demand_of
from shardyard.recipe.schema import Recipe
from shardyard.redaction import scrub_all
from shardyard.units import format_bytes

# Ray's default for `ray job stop` is SIGTERM, which also announces a preemption; SIGINT marks a request by a person.
STOP_SIGNAL = "SIGINT"
# The time that Ray waits for the last checkpoint of a stopped job before it kills it.
STOP_WAIT_SECONDS = 900
# Metadata key of a job: its effective submission time.
_SUBMITTED = "shardyard_submitted"
# Ray's autoscaler and KubeRay label the nodes that they start.
_NODE_GROUP = "ray.io/node-group"
LARGE_UPLOAD_BYTES = 1024**2
HEAD_START_SECONDS = 15.0


def connect(address: str | None) -> JobsApi:
    """The Jobs API of the selected cluster.

    Raises:
        ShardyardError: no cluster is selected, it does not answer, rejects the token, or runs another version of Ray.
    """
    api = JobsApi(target(address))
    api.check_version()
    return api


def nodes_of(api: JobsApi) -> list[Node]:
    """The living nodes of a cluster with their total resources."""
    deadline = time.monotonic() + HEAD_START_SECONDS
    # A head that has just started serves its Jobs API before it lists itself.
    while not (listed := api.nodes()) and time.monotonic() < deadline:
        time.sleep(0.2)
    amounts = [(node["node_id"], amount_of(node["resources_total"])) for node in listed]
    return [Node(name, amount, amount) for name, amount in amounts]


def amount_of(resources: Mapping[str, float | str]) -> Amount:
    """Resources as Ray's state API lists them; sizes are texts such as `4.000 GiB`."""
    return Amount(
        cpus=float(resources.get("CPU", 0.0)),
        gpus=float(resources.get("GPU", 0.0)),
        memory=_bytes(resources.get("memory", 0.0)),
    )


def autoscales(api: JobsApi) -> bool:
    """Whether nodes may be added automatically."""
    return any(_NODE_GROUP in (node.get("labels") or {}) for node in api.nodes())


def submit(request: SubmitRequest, report: Report, api: JobsApi | None = None) -> str:
    """Submit a job; returns its id, which is also the run's.

    Raises:
        ShardyardError: the cluster rejects it. Nothing is left behind then, nor after Ctrl-C.
    """
    request = replace(request, run_id=request.run_id or new_run_id(request.loaded.recipe.name))
    spec: JobSpec = {**spec_of(request), "working_dir": request.working_dir is not None}
    folder = request.working_dir.expanduser().absolute() if request.working_dir is not None else None
    selection = _selected(request, folder) if folder is not None else None
    if request.dry_run is not None:
        files = _listed(folder, selection, report) if folder is not None and selection is not None else {}
        _write(request.dry_run, {**_body(request, spec, "gcs://PACKAGE.zip"), SPEC_NAME: spec, **files})
        report(f"wrote {request.dry_run}; nothing was submitted")
        return str(request.run_id)
    api = api or connect(request.address)
    spec["address"] = api.cluster.url
    position = position_after(_unended(api))
    spec["submitted"], spec["after"] = position.submitted, list(position.after)
    # The cluster of this machine uses this interpreter, which may not be on its PATH.
    python = sys.executable if api.cluster.record is not None else "python"
    text = json.dumps(spec, ensure_ascii=False)
    if folder is not None and selection is not None:
        report(in_short(folder, selection))
    name, content = package(text, selection, folder)
    if not api.has_package(name):
        if len(content) > LARGE_UPLOAD_BYTES:
            report(f"uploading {format_bytes(len(content))}")
        api.upload(name, content)
    secret = _leave_secrets(api, request.loaded.recipe)
    try:
        # Nobody would know of a partially submitted job.
        with uninterrupted():
            return _sent(api, _body(request, spec, f"gcs://{name}", secret, python))
    except BaseException:
        if secret is not None:
            with suppress(ShardyardError):
                api.upload(secret, b"")
        raise


def _unended(api: JobsApi) -> dict[str, float]:
    """The effective submission times of Shardyard's unended jobs, by id."""
    unended = {
        str(job["submission_id"]): job.get("metadata") or {} for job in api.jobs() if job["status"] not in TERMINAL
    }
    return {job: float(metadata[_SUBMITTED]) for job, metadata in unended.items() if _SUBMITTED in metadata}


def _selected(request: SubmitRequest, folder: Path) -> Selection:
    return checked_files(folder, [request.runs_dir, home(), token_path(), ray_token_path()])


def _listed(folder: Path, selection: Selection, report: Report) -> dict[str, object]:
    """The part of a dry run's output about the folder."""
    for line in listing(folder, selection):
        report(line)
    return {
        "files": {str(path.relative_to(folder)): size for path, size in selection.files},
        "left_out": dict(selection.left_out),
    }


def _sent(api: JobsApi, body: RayJobBody) -> str:
    """Submit a job; it may exist even if the answer is lost."""
    try:
        return api.submit(body)
    except ShardyardError:
        with suppress(ShardyardError):
            return str(api.job(body["submission_id"])["submission_id"])
        raise


def _leave_secrets(api: JobsApi, recipe: Recipe) -> str | None:
    variables = secrets.to_carry(os.environ, recipe)
    if not variables:
        return None
    name = secrets.new_name()
    api.has_package(name)  # after this query, Ray deletes the upload in time
    api.upload(name, secrets.pack(variables))
    return name


def _body(
    request: SubmitRequest, spec: JobSpec, package_uri: str, secret: str | None = None, python: str = "python"
) -> RayJobBody:
    """The request to the Jobs API; `python` is the interpreter on the head."""
    command = entry_command(SPEC_NAME, python=python)
    if secret is not None:
        command = [*command[:-1], "--secrets", secret, command[-1]]
    demand = demand_of(request.loaded.recipe, gpu=request.plan.world.gpu, workers=request.plan.world.size)
    metadata = {
        "job_name": request.job_name,
        "shardyard_run": str(request.run_id),
        "shardyard_run_folder": str(request.runs_dir / str(request.run_id)),
        "shardyard_recipe": request.name,
        "shardyard_needs": spec["needs"],
        "shardyard_cpus": f"{demand.workers * demand.bundle.cpus:g}",
        "shardyard_gpus": f"{demand.workers * demand.bundle.gpus:g}",
        "shardyard_steps": str(request.plan.steps),
        "shardyard_tags": ",".join(spec["tags"]),
        "shardyard_version": spec["version"],
        _SUBMITTED: f"{spec['submitted']:.3f}",
    }
    return {
        # `exec`: no shell stays between Ray and the entry point.
        "entrypoint": f"exec {shlex.join(command)}",
        "submission_id": str(request.run_id),
        # The entry point contains a random name; this is text from the user.
        "metadata": scrub_all(metadata),
        "runtime_env": {
            "working_dir": package_uri,
            "env_vars": {"RAY_JOB_STOP_SIGNAL": STOP_SIGNAL, "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_SECONDS)},
        },
    }


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C takes effect only after the block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


def _write(path: Path, value: Mapping[str, object]) -> None:
    try:
        path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}.") from error


def _bytes(value: Any) -> float:
    if isinstance(value, int | float):
        return float(value)
    number, _, unit = str(value).partition(" ")
    powers = {"B": 0, "KiB": 1, "MiB": 2, "GiB": 3, "TiB": 4, "PiB": 5}
    try:
        return float(number) * float(1024 ** powers[unit or "B"])
    except (KeyError, ValueError):
        return 0.0
