"""`shardyard submit`: check and plan a recipe here, and hand it to Ray, Slurm or Kubernetes as a job."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from shardyard.cli.options import Overrides, Quiet, RecipeName, RunsDir, Try
from shardyard.cli.view import output
from shardyard.errors import UsageError
from shardyard.launch.jobs.named_files import refuse_unseen_files
from shardyard.recipe.loading.load import LoadedRecipe, load_recipe
from shardyard.recipe.shorten import as_trial
from shardyard.redaction import holds_secret

if TYPE_CHECKING:
    from shardyard.launch.jobs.submission import SubmitRequest
    from shardyard.launch.schedulers.ray.api import JobsApi
    from shardyard.planning.plan import RunPlan

Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="Ray's dashboard, http://HEAD:8265; RAY_API_SERVER_ADDRESS, RAY_ADDRESS, or the cluster started here.",
    ),
]
Scheduler = Annotated[Literal["ray", "slurm", "kuberay"], typer.Option("--on", help="What carries out the job.")]
_JOB_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")


def submit(
    name: RecipeName,
    overrides: Overrides = None,
    address: Address = None,
    job_name: Annotated[str | None, typer.Option("--name", help="Name of the job; the recipe's by default.")] = None,
    try_steps: Try = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow its log, and end with its exit code.")] = False,
    on: Scheduler = "ray",
    dry_run: Annotated[
        Path | None, typer.Option("--dry-run", metavar="FILE", help="Write what would be submitted; submit nothing.")
    ] = None,
    runs_dir: RunsDir = None,
    working_dir: Annotated[
        Path | None,
        typer.Option("--working-dir", help="Folder that goes along; --dry-run lists its files."),
    ] = None,
    quiet: Quiet = False,
) -> int:
    """Submit a recipe as a job."""
    if job_name is not None and not _JOB_NAME.match(job_name):
        raise UsageError(f"--name {job_name!r} is no name: up to 80 letters, digits, '.', '_' and '-'.")
    if job_name is not None and holds_secret(job_name):
        raise UsageError("--name holds what looks like a secret; everyone who lists the jobs sees it.")
    if working_dir is not None and not working_dir.is_dir():
        raise UsageError(f"--working-dir {working_dir} is no folder.")
    loaded = load_recipe(name, overrides or [])
    refuse_unseen_files(loaded.recipe, on, working_dir)
    asked = (name, tuple(overrides or ()), job_name or loaded.recipe.name, dry_run, runs_dir, working_dir, try_steps)
    if on != "ray":
        return _elsewhere(on, loaded, asked, address, wait=wait, quiet=quiet)
    api = None
    if dry_run is None:
        from shardyard.launch.schedulers.ray.jobs import connect

        api = connect(address)
    request = _request(loaded, lambda tried: _plan(tried, api), asked, address)
    return _on_ray(request, api, wait=wait, quiet=quiet)


def at_address(address: str | None) -> str:
    """The option that finds the same cluster again; "" where the environment or the cluster of this machine says it."""
    return f" --address {shlex.quote(address)}" if address is not None else ""


def _plan(loaded: LoadedRecipe, api: JobsApi | None) -> RunPlan:
    """The plan for a cluster, which has to be able to hold it."""
    from shardyard.cli.commands.launch import refuse_what_does_not_fit
    from shardyard.launch.run.initial import for_planning
    from shardyard.launch.run.prepare import prepare
    from shardyard.launch.schedulers.ray.jobs import autoscales, nodes_of, refuse_what_never_fits, world_on
    from shardyard.tracking.run.folder import runs_folder

    nodes = nodes_of(api) if api is not None else []
    world = world_on(loaded.recipe, nodes)
    if api is not None and not autoscales(api):
        refuse_what_never_fits(loaded.recipe, gpu=world.gpu, nodes=nodes, url=api.cluster.url)
    made = prepare(for_planning(loaded.recipe, runs_folder()), world, remember=True)
    refuse_what_does_not_fit(made)
    return made


def _request(
    loaded: LoadedRecipe, plan: Callable[[LoadedRecipe], RunPlan], asked: tuple[Any, ...], address: str | None
) -> SubmitRequest:
    from shardyard.launch.jobs.submission import SubmitRequest
    from shardyard.planning.plan_text import resolved_text
    from shardyard.tracking.run.folder import runs_folder

    name, overrides, job_name, dry_run, runs_dir, working_dir, try_steps = asked
    made, trial = plan(loaded), None
    if try_steps is not None:
        trial = {"steps": try_steps, "of": made.steps}
        loaded = replace(loaded, recipe=as_trial(loaded.recipe, try_steps, of=made.steps))
        made = plan(loaded)
    return SubmitRequest(
        name=name,
        overrides=overrides,
        loaded=loaded,
        plan=made,
        runs_dir=runs_folder(runs_dir),
        job_name=job_name,
        dry_run=dry_run,
        address=address,
        resolved=resolved_text(loaded.recipe, made),
        working_dir=working_dir,
        trial=trial,
    )


def _on_ray(request: SubmitRequest, api: JobsApi | None, *, wait: bool, quiet: bool) -> int:
    from shardyard.launch.schedulers.ray.jobs import submit as submit_to_ray

    job_id = submit_to_ray(request, output.note, api)
    if quiet or request.dry_run is not None:
        output.line(job_id)
    else:
        output.line(f"job          {job_id}")
        output.line(f"run folder   {request.runs_dir / job_id}")
        output.line(f"follow       shardyard logs -f {job_id}{at_address(request.address)}")
    if not wait or api is None:
        return 0
    from shardyard.cli.commands.jobs import follow
    from shardyard.cli.commands.jobs_found import JobHandle

    return follow(JobHandle(api.job(job_id), api, None), shown=not quiet)


def _elsewhere(
    on: str, loaded: LoadedRecipe, asked: tuple[Any, ...], address: str | None, *, wait: bool, quiet: bool
) -> int:
    """Slurm or Kubernetes, which start a cluster of Ray for the job."""
    from shardyard.cli.commands.plan import plan_of
    from shardyard.launch.run.initial import for_planning
    from shardyard.tracking.run.folder import runs_folder

    def plan(tried: LoadedRecipe) -> RunPlan:
        return plan_of(replace(tried, recipe=for_planning(tried.recipe, runs_folder())), elsewhere=True)

    request = _request(loaded, plan, asked, address)
    if on == "slurm":
        from shardyard.launch.schedulers.slurm.jobs import submit as submit_there
    else:
        from shardyard.launch.schedulers.kuberay.jobs import submit as submit_there
    job_id = submit_there(request, output.note)
    if job_id:
        output.line(job_id if quiet else f"job          {job_id}")
    if wait and job_id and on == "slurm":
        from shardyard.cli.commands.jobs import follow
        from shardyard.cli.commands.jobs_found import find

        return follow(find(job_id, None, request.runs_dir), shown=not quiet)
    if wait and job_id:
        from shardyard.cli.commands.jobs_kuberay import logs

        return logs(job_id, follow=True)
    return 0
