"""job.json, the file of a job: recipe, plan, and the policy for each exit code.

One JSON file, written at submission and read by `shardyard.launch.jobs.entry` under every scheduler. It contains no
secrets. Reading it needs only the standard library.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypedDict, cast

from shardyard import __version__
from shardyard.errors import UsageError
from shardyard.redaction import holds_secret, scrub_all
from shardyard.tracking.run.info import ShortenedInfo

if TYPE_CHECKING:
    from shardyard.launch.jobs.submission import SubmitRequest
    from shardyard.planning.plan import RunPlan
    from shardyard.recipe.schema import Recipe

SPEC_NAME = "job.json"
# Version of job.json; incremented when an existing key changes its meaning. Files without a version count as 0.
FORMAT = 1
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Policy(TypedDict):
    """The section `job` of a recipe: the policy after an attempt. `time_limit` in seconds."""

    retries: int
    on_failed: str
    on_timeout: str
    on_preempted: str
    time_limit: float | None


class JobSpec(TypedDict):
    """The keys of job.json.

    run_id, runs_dir: the run folder that the job creates or continues. resolved_text becomes its resolved.yaml, from
        which the job then trains, also after `resume -s`.
    recipe, plan: as submitted; `plan` is used while resolved.yaml is equivalent and `version` is unchanged.
    given, overrides: the recipe as named by the user. needs: the required resources as text.
    submitted: seconds since 1970, the queue's sort key. after: ids of the jobs before it; see `jobs.order`.
    scheduler: of another package. address: of the Ray cluster. working_dir: whether files travel with the job.
    code: the text of each code file that the recipe names, by its path in the recipe.
    """

    format: NotRequired[int]
    version: str
    run_id: str
    job_name: str
    name: str
    given: str
    overrides: list[str]
    runs_dir: str
    submitted: float
    needs: str
    tags: list[str]
    trial: ShortenedInfo | None
    policy: Policy
    recipe_text: str
    resolved_text: str
    recipe: dict[str, object]
    plan: dict[str, object]
    after: NotRequired[list[str]]
    scheduler: NotRequired[str]
    address: NotRequired[str]
    working_dir: NotRequired[bool]
    code: NotRequired[dict[str, str]]


def new_run_id(name: str) -> str:
    """`<name>-<date>-<time>-<4 random>` (UTC), like run folders; a valid id of a Ray job."""
    return f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def spec_of(request: SubmitRequest, submitted: float | None = None) -> JobSpec:
    """The specification of a job as plain data.

    Args:
        submitted: seconds since 1970; now by default.

    Raises:
        UsageError: a code file that the recipe names cannot be read, or contains a secret.
    """
    from pydantic import TypeAdapter

    from shardyard.planning.placement import demand_of, judge
    from shardyard.planning.plan import RunPlan, fixed
    from shardyard.recipe.code import code_files
    from shardyard.recipe.loading.load import dump_recipe

    plan = request.plan
    recipe = fixed(request.loaded.recipe, plan)
    demand = demand_of(recipe, gpu=plan.world.gpu, workers=plan.world.size)
    known: JobSpec = {
        "format": FORMAT,
        "version": __version__,
        "run_id": request.run_id or new_run_id(recipe.name),
        "job_name": request.job_name,
        "name": recipe.name,
        "given": request.name,
        "overrides": list(request.overrides),
        "runs_dir": str(request.runs_dir),
        "submitted": time.time() if submitted is None else submitted,
        "needs": judge(demand, []).sentence.partition(";")[0],
        "tags": list(recipe.tracking.tags),
        "trial": cast("ShortenedInfo | None", request.trial),
        "policy": policy_of(recipe),
        "recipe_text": request.loaded.text,
        "resolved_text": request.resolved or dump_recipe(recipe),
        "recipe": recipe.model_dump(mode="json"),
        "plan": TypeAdapter(RunPlan).dump_python(plan, mode="json"),
    }
    # The recipe contains no secrets, but its comments, overrides and given names may.
    spec = cast("JobSpec", scrub_all(known))
    code = {path.as_posix(): _code(path) for path in code_files(recipe)}
    return {**spec, "code": code} if code else spec


def _code(path: Path) -> str:
    try:
        text = path.expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}, which the recipe names as code, cannot be read: {error}") from error
    if holds_secret(text):
        raise UsageError(
            f"{path}, which the recipe names as code, holds what looks like a secret, and it would travel with the job "
            "and stay in the run folder; read it from an environment variable."
        )
    return text


def policy_of(recipe: Recipe) -> Policy:
    """The section `job` of a recipe in the form that the entry point reads; `time_limit` in seconds."""
    job = recipe.job
    return {
        "retries": job.retries,
        "on_failed": job.on_failed,
        "on_timeout": job.on_timeout,
        "on_preempted": job.on_preempted,
        "time_limit": None if job.time_limit is None else limit_seconds(job.time_limit),
    }


def limit_seconds(text: str) -> float:
    """A duration such as 90m, 1.5h or 2d in seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    assert found is not None, text
    return float(found[1]) * _SECONDS[found[2]]


def write_spec(spec: JobSpec, path: Path) -> None:
    """Write the file."""
    path.write_text(json.dumps(spec, ensure_ascii=False), encoding="utf-8")


def read_spec(path: Path) -> JobSpec:
    """Read the file.

    Raises:
        OSError: the file does not exist or cannot be read.
        ValueError: it is not a job file.
    """
    spec = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(spec, dict) or not {"run_id", "runs_dir", "policy"} <= spec.keys():
        raise ValueError(f"{path} was not written by `shardyard submit`")
    if int(spec.get("format") or 0) > FORMAT:
        raise ValueError(f"a newer version of Shardyard wrote it (format {spec['format']}); upgrade Shardyard here")
    return cast("JobSpec", spec)


def plan_in(spec: JobSpec) -> RunPlan | None:
    """The submitted plan; None if it is from another version of Shardyard."""
    from pydantic import TypeAdapter, ValidationError

    from shardyard.planning.plan import RunPlan

    if spec.get("version") != __version__:
        return None
    try:
        return TypeAdapter(RunPlan).validate_python(spec["plan"])
    except ValidationError:
        return None


def entry_command(spec: str, *, python: str = "python") -> list[str]:
    """The command that runs a job from its file; it exits with the job's exit code.

    It creates the run folder or continues an existing one, so a scheduler may restart it. On SIGTERM it ends with a
    checkpoint as preempted (143), on SIGINT as interrupted by a person (130).

    Args:
        spec: path of the file of `write_spec`, as the job sees it.
        python: the interpreter with Shardyard.
    """
    return [python, "-m", "shardyard.launch.jobs.entry", spec]
