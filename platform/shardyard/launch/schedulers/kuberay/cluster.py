"""The manifest of a RayCluster for interactive use, of the size that a recipe needs.

python -m shardyard.launch.schedulers.kuberay.cluster RECIPE [-s KEY=VALUE …] [--name NAME] > raycluster.yaml
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence

from shardyard.errors import ShardyardError
from shardyard.launch.run.initial import for_planning
from shardyard.launch.run.prepare import prepare
from shardyard.launch.schedulers.kuberay.names import MAX_CLUSTER_NAME, dns_name
from shardyard.launch.schedulers.kuberay.render import describe, render_cluster
from shardyard.launch.schedulers.kuberay.yaml import to_yaml
from shardyard.planning.plan import World
from shardyard.recipe.loading.load import load_recipe
from shardyard.tracking.run.folder import runs_folder


def manifest(name_or_path: str, overrides: Sequence[str] = (), name: str | None = None) -> str:
    """The manifest as YAML; the same on every machine, with GPUs only if `cluster.gpus_per_worker` requests them.

    Raises:
        RecipeError: Kubernetes would reject the settings.
    """
    recipe = for_planning(load_recipe(name_or_path, overrides).recipe, runs_folder())
    plan = prepare(recipe, World(size=recipe.cluster.workers, gpu=bool(recipe.cluster.gpus_per_worker)))
    options = [part for override in overrides for part in ("-s", override)] + (["--name", name] if name else [])
    command = shlex.join(["python", "-m", "shardyard.launch.schedulers.kuberay.cluster", name_or_path, *options])
    cluster = render_cluster(dns_name(name or recipe.name, MAX_CLUSTER_NAME), recipe, plan)
    return to_yaml([cluster], [command, *describe(recipe, plan)])


def main(arguments: Sequence[str]) -> int:
    """Print the manifest; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="shardyard.launch.schedulers.kuberay.cluster", description="Print a RayCluster."
    )
    parser.add_argument("recipe", help="path or name of a shipped recipe")
    parser.add_argument("-s", "--set", action="append", default=[], metavar="KEY=VALUE", help="override a field")
    parser.add_argument("--name", help="name of the cluster; default: the recipe's")
    options = parser.parse_args(arguments)
    try:
        sys.stdout.write(manifest(options.recipe, options.set, options.name))
    except ShardyardError as error:
        sys.stderr.write(f"Error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
