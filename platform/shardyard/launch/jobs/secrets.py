"""Passing variables of the submitter, such as WANDB_API_KEY, to a job without exposing them.

Ray logs a job's `runtime_env`, metadata and entry point, and shows them to everyone who may list jobs. The variables
are therefore stored in the head's memory under a random name, readable only with the cluster's token. The entry point
fetches and removes them, and they stay in memory: as environment of the driver, and as a Ray object for the ranks. Ray
deletes unclaimed ones after ten minutes.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from shardyard.errors import ShardyardError
from shardyard.redaction import VARIABLE_PREFIX, variables_in

if TYPE_CHECKING:
    from shardyard.recipe.schema import Recipe

# Names of the variables that came with the job; the driver passes only these to the ranks.
CARRIED_VARIABLE = "SHARDYARD_CARRIED"
PREFIXES = ("WANDB_", "AWS_")
NAMES = frozenset({"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"})
# Variables that concern only the submitter's machine.
STAYS = frozenset(
    {"WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR", "WANDB_SERVICE"}
    | {"WANDB_RUN_ID", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CA_BUNDLE"}
)
RECEIVE_TIMEOUT_SECONDS = 60.0


def to_carry(environment: Mapping[str, str], recipe: Recipe | None = None) -> dict[str, str]:
    """The variables of an environment that are sent with a job, including those in URLs of its recipe."""
    named = of_recipe(recipe) if recipe is not None else frozenset()
    return {
        name: value
        for name, value in sorted(environment.items())
        if (name in NAMES or name in named or name.startswith(PREFIXES)) and name not in STAYS and value
    }


def of_recipe(recipe: Recipe) -> frozenset[str]:
    """The variables that are substituted into URLs of a recipe when its data is read."""
    sources = [*recipe.data.train, *recipe.data.validation]
    found = (name for source in sources for name in variables_in(source.path or ""))
    return frozenset(name for name in found if name.startswith(VARIABLE_PREFIX))


def new_name() -> str:
    """A random name for stored variables."""
    return f"shardyard-{secrets.token_hex(16)}.zip"


def pack(variables: Mapping[str, str]) -> bytes:
    """The variables as bytes to store."""
    return json.dumps(dict(variables)).encode()


def receive(name: str) -> dict[str, str]:
    """Fetch the variables from the head; `SHARDYARD_CARRIED` lists their names.

    A separate process connects to Ray, so that the entry point stays small.

    Raises:
        ShardyardError: they no longer exist.
    """
    command = [sys.executable, "-c", "from shardyard.launch.jobs.secrets import _print; _print()"]
    try:
        done = subprocess.run(
            command, input=name.encode(), stdout=subprocess.PIPE, timeout=RECEIVE_TIMEOUT_SECONDS, check=True
        )
        variables: dict[str, str] = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise ShardyardError(
            "the variables that were submitted with this job, such as WANDB_API_KEY, are no longer on the cluster: Ray "
            "keeps them for ten minutes at most. Submit again."
        ) from error
    return {**variables, CARRIED_VARIABLE: " ".join(variables)}


def carried(environment: Mapping[str, str] | None = None, recipe: Recipe | None = None) -> dict[str, str]:
    """In the driver: the variables for the ranks, sent with the job or named in URLs of the recipe."""
    environment = os.environ if environment is None else environment
    names = [*environment.get(CARRIED_VARIABLE, "").split(), *(of_recipe(recipe) if recipe is not None else ())]
    return {name: environment[name] for name in names if name in environment}


def _print() -> None:
    """Read a name from stdin and print the variables stored under it; stdout is a pipe to the entry point."""
    from shardyard.launch.ray.quirks import take_internal

    name = sys.stdin.read()
    found = take_internal(os.environ["RAY_ADDRESS"], f"gcs://{name}")
    if not found:
        sys.exit(1)
    sys.stdout.buffer.write(found)
