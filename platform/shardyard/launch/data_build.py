"""`shardyard data build` in this process, on the cores of this machine, or on a Ray cluster."""

from __future__ import annotations

from shardyard.data.build.build import Built, Report, build, here
from shardyard.data.build.spec import LoadedSpec
from shardyard.launch.ray.cluster import ray_cluster
from shardyard.launch.ray.tasks import RayTasks
from shardyard.recipe.schema import Cluster


def build_data(
    loaded: LoadedSpec, report: Report, *, local: bool = False, workers: int | None = None, replace_old: bool = False
) -> Built:
    """Make the output of a file.

    Args:
        local: in this process, without Ray.
        workers: tasks at the same time; by default one for each core of the cluster.

    Raises:
        ShardyardError: the cluster cannot be reached, or as `build` does.
    """
    if local:
        return build(loaded, here, report, replace_old=replace_old)
    with ray_cluster(Cluster(workers=workers or 1, cpus_per_worker=1)):
        return build(loaded, RayTasks(workers), report, replace_old=replace_old)
