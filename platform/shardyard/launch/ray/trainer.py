"""One attempt at a job on Ray Train."""

from __future__ import annotations

import asyncio
import os
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray import train
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, WorkerCrashedError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.worker_group import Worker, WorkerGroup, worker_group
from ray.train.v2._internal.execution.worker_group import state as worker_group_state
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.result import Result
from ray.util.placement_group import NODE_ID_LABEL_KEY

from shardyard.engine.job import Job
from shardyard.errors import ShardyardError
from shardyard.imports import import_at_once
from shardyard.launch.jobs.secrets import carried
from shardyard.launch.ray.death import count_oom_kills, describe_death
from shardyard.launch.ray.group import Group
from shardyard.launch.ray.network import to_forward
from shardyard.launch.ray.process_group import ProcessGroup
from shardyard.launch.run.recovery import Failure, RankError, bug_in_words, group_causes, is_bug
from shardyard.planning.placement import ANYWHERE, Demand, Placement, demand_of

# Ranks import torch, which takes longer on some hosts than on others, before they meet.
RENDEZVOUS_SECONDS = 300.0
# How long workers may take to get resources that were free a moment ago.
PLACEMENT_SECONDS = 10.0
_START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
_START_TIMEOUT_IS_GIVEN = _START_TIMEOUT in os.environ
_RAY_TRAIN = {
    # How often the controller looks whether ranks still run, and so how long after the last step a run ends.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    # A process for each attempt that tells ranks of nodes that are being drained; nothing here asks for it.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
# Where Ray's exceptions keep what they were raised for, and Python's.
_INSIDE = ("cause", "_base_exc", "health_check_failure", "__cause__")
# What Ray raises for a process that is gone.
_DEATHS = (RayActorError, WorkerCrashedError, OutOfMemoryError, NodeDiedError)
_OF_CONTROLLER = {*_RAY_TRAIN, _START_TIMEOUT}


class _NoActor:
    """In the place of an actor that is never called."""

    def options(self, **_: Any) -> _NoActor:
        return self

    def remote(self, **_: Any) -> _NoActor:
        return self


# Every group of workers would start an actor at which they wait for one another when they report to Ray Train, which
# they never do.
worker_group.SynchronizationActor = _NoActor()
worker_group_state._shutdown_sync_actor = lambda actor: None


class _WorkerGroup(WorkerGroup):  # type: ignore[misc]
    """Ray's, for workers that need neither the actor above nor the controller, which is none here."""

    @staticmethod
    def _get_worker_runtime_env(custom_runtime_env: Mapping[str, Any]) -> dict[str, Any]:
        # Without variables of its own a worker may be a process that Ray has ready. The controller's are not for it.
        given = {name: value for name, value in get_env_vars_to_propagate().items() if name not in _OF_CONTROLLER}
        return {**custom_runtime_env, **({"env_vars": given} if given else {})}

    def _init_train_context_on_workers(
        self, workers: list[Worker], sync_actor: _NoActor, train_context_args: dict[str, list[Any]]
    ) -> None:
        ray.get(
            [
                worker.actor.init_train_context.remote(
                    train_run_context=self._train_run_context,
                    distributed_context=worker.distributed_context,
                    synchronization_actor=None,
                    storage_context=self._storage_context,
                    worker_callbacks=self._worker_callbacks_to_propagate,
                    controller_actor=None,
                    **{name: values[index] for name, values in train_context_args.items()},
                )
                for index, worker in enumerate(workers)
            ]
        )
        self._decorate_worker_log_file_paths(workers)


class _Controller(TrainController):  # type: ignore[misc]
    worker_group_cls = _WorkerGroup


class _Trainer(DataParallelTrainer):  # type: ignore[misc]
    """Ray's, without four processes that it starts for every attempt, each of which imports Ray anew.

    The controller runs in this one, which has nothing else to do. Of the others, one synchronises reports (see above),
    one deals out data sets of Ray Data, which are not used, and one removes the placement group of a controller that
    died, as Ray does by itself where a driver or an actor made it.
    """

    def _create_default_callbacks(self) -> list[Any]:
        spared = (DatasetsCallback, PlacementGroupCleanerCallback)
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, spared)]

    def _initialize_and_run_controller(self, **settings: Any) -> Result:
        controller = _Controller(**settings)
        asyncio.run(controller.run())
        return controller.get_result()


class NotPlacedError(Exception):
    """The workers did not get their resources: somebody else was faster, or a node is gone that Ray still counted."""


def attempt(job: Job, demand: Demand | None = None, placement: Placement = ANYWHERE) -> Failure | None:
    """Run all ranks of a job once; returns why it failed, or None. By default Ray places what the plan says.

    Ray's own restarts are off: what to do after a failure is decided by `recovery.decide`, which can tell a loss that
    is not a number from a node that went away.

    Raises:
        NotPlacedError: no worker ran.
    """
    _configure(pinned=bool(placement.ranks))
    demand = demand or demand_of(job.recipe, gpu=job.plan.world.gpu, workers=job.plan.world.size)
    trainer = _Trainer(
        work,
        # As bytes, because Ray's controller reads this too, and a job imports torch and DeepSpeed.
        train_loop_config={"job": pickle.dumps(job)},
        backend_config=ProcessGroup(
            backend="nccl" if job.plan.world.gpu else "gloo",
            timeout=max(RENDEZVOUS_SECONDS, job.recipe.cluster.network.timeout),
        ),
        scaling_config=scaling(demand, placement),
        run_config=RunConfig(
            name=job.folder.id,
            storage_path=str(_ray_folder(job)),
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
            callbacks=[_group(job, demand)],
        ),
    )
    killed = count_oom_kills()
    try:
        trainer.fit()
    except train.WorkerGroupError as error:
        return _from_workers(error, lambda rank, text: _death(job, rank, text, killed))
    except train.ControllerError as error:
        return _from_controller(error)
    except train.TrainingFailedError as error:
        return Failure({_last_line(str(error)): ()}, permanent=False)
    return None


def _configure(*, pinned: bool) -> None:
    for name, value in _RAY_TRAIN.items():
        os.environ.setdefault(name, value)
    if _START_TIMEOUT_IS_GIVEN:
        return
    # Nodes with room give it at once; one that does not is gone, or somebody else was faster. Those that an autoscaler
    # starts take as long as Ray Train waits by itself.
    os.environ.pop(_START_TIMEOUT, None)
    if pinned:
        os.environ[_START_TIMEOUT] = f"{PLACEMENT_SECONDS:g}"


def work(config: dict[str, Any]) -> None:
    """What Ray Train runs in each worker. The driver knows it by name only, without torch and DeepSpeed."""
    import_at_once("shardyard.launch.ray.worker")
    from shardyard.launch.ray.worker import train_worker

    train_worker(config)


def scaling(demand: Demand, placement: Placement) -> ScalingConfig:
    """Ray Train's words for a demand and its placement.

    Ray Train numbers ranks node by node in the order of bundles, so bundles in the order of the placement's nodes make
    consecutive ranks neighbours. Each bundle names its node: packing by Ray itself fills nodes to the brim and may cut
    a group of ranks in two. A placement without ranks leaves the choice to Ray.
    """
    amount = demand.bundle
    wanted = {"CPU": amount.cpus, "GPU": amount.gpus, "memory": amount.memory}
    pinned = [{NODE_ID_LABEL_KEY: node} for node in placement.node_of_rank]
    return ScalingConfig(
        num_workers=demand.workers,
        use_gpu=amount.gpus > 0,
        resources_per_worker={name: value for name, value in wanted.items() if value},
        placement_strategy="PACK" if pinned else demand.strategy.upper(),
        label_selector=pinned or None,
    )


def _group(job: Job, demand: Demand) -> Group:
    return Group(
        job.folder,
        job.recipe.cluster.network,
        gpu=job.plan.world.gpu,
        group=demand.group,
        forwarded=to_forward(os.environ),
        private=carried(os.environ, job.recipe),
    )


def _ray_folder(job: Job) -> Path:
    """Ray Train keeps a few files of its own; they lie with the logs of the run."""
    folder = job.folder.path / "logs" / "ray"
    os.makedirs(folder, exist_ok=True)
    return folder


def _from_controller(error: train.ControllerError) -> Failure:
    cause = error.controller_failure
    if isinstance(cause, WorkerGroupStartupTimeoutError):
        raise NotPlacedError from error
    if isinstance(cause, ShardyardError):
        return Failure({str(cause): ()}, permanent=True)
    # The workers never trained.
    if is_bug(cause):
        return Failure({bug_in_words(_last_line(str(cause)), _host(str(cause))): ()}, permanent=True)
    return Failure({_last_line(str(cause)): ()}, permanent=False)


def _host(text: str) -> str:
    """The address that Ray names in front of what a worker raised."""
    found = re.search(r"\bip=([^,)\s]+)", text)
    return found[1] if found else "the host of the launch"


def _death(job: Job, rank: int, ray_message: str, killed_before: int | None) -> str:
    killed = count_oom_kills()
    more = killed - killed_before if killed is not None and killed_before is not None else None
    places = job.folder.info().placement
    return describe_death(job.folder.logs / f"rank-{rank}.log", rank, places, ray_message, oom_kills=more)


def _from_workers(
    error: train.WorkerGroupError, died: Callable[[int, str], str] = lambda rank, text: _last_line(text)
) -> Failure:
    """`died` tells of a rank whose process is gone, from its number and what Ray says."""
    messages: dict[int, str] = {}
    permanent = False
    for rank, raised in error.worker_failures.items():
        cause = _cause(raised)
        if isinstance(cause, RankError):
            messages[rank] = cause.message
            permanent = permanent or cause.permanent
        elif is_bug(cause):
            # It did not come as far as to report it itself: the rank's own modules cannot be imported.
            messages[rank] = bug_in_words(_last_line(str(raised)), _host(str(raised)))
            permanent = True
        elif isinstance(cause, _DEATHS):
            messages[rank] = died(rank, f"{raised}\n{cause}")
        else:
            messages[rank] = _last_line(str(raised))
    return Failure(group_causes(messages), permanent)


def _cause(error: BaseException) -> BaseException:
    """The exception that the worker raised, inside the layers that Ray wraps around it."""
    layer: BaseException | None = error
    innermost = error
    seen: set[int] = set()
    # Exceptions that cause each other come round to one that was seen.
    while layer is not None and id(layer) not in seen:
        if isinstance(layer, RankError):
            return layer
        seen.add(id(layer))
        innermost = layer
        inside = (getattr(layer, name, None) for name in _INSIDE)
        layer = next((found for found in inside if isinstance(found, BaseException)), None)
    return innermost


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "the worker ended without a message"
