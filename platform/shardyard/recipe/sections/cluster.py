"""Where a recipe runs: number and size of workers, network, and scheduler."""

from __future__ import annotations

from typing import Literal

from shardyard.recipe.sections.base import BYTES_PATTERN, Section, described


class Network(Section):
    """How ranks reach each other. Missing values are derived; `shardyard plan` shows how."""

    interface: str | None = described(
        None,
        "Network interface of gloo and of NCCL's bootstrap, or a prefix of its name. Default: on each host, the "
        "interface of the address that Ray uses.",
    )
    rdma: Literal["auto", "off"] = described(
        "auto", "auto leaves InfiniBand, RoCE and EFA to NCCL; off makes it use TCP (NCCL_IB_DISABLE=1)."
    )
    timeout: float = described(
        1800.0,
        "Timeout of a collective operation, after which the attempt fails. Within steps a shorter one follows from "
        "their measured time.",
        "seconds",
        gt=0.0,
    )


class Watchdog(Section):
    """Watching the ranks from outside (docs/reliability/hangs.md)."""

    hangs: Literal["restart", "report", "off"] = described(
        "restart",
        "What follows when ranks hang: a report and a restart as after a failure (cluster.max_failures), a report "
        "alone, or nothing, without watching.",
    )
    hang_seconds: float = described(
        10.0,
        "A rank hangs in a step after this long without progress, or after 5 times the 99th percentile of recent steps "
        "if that is longer.",
        "seconds",
        gt=0.0,
    )
    idle_seconds: float = described(
        300.0,
        "The same between steps and at the start (loading, evaluation, checkpoint) while no rank computes, reads or "
        "writes; ranks that do may take cluster.network.timeout.",
        "seconds",
        gt=0.0,
    )
    data_seconds: float = described(
        900.0, "Longest wait of a rank for a batch; keep it above data.retry_seconds.", "seconds", gt=0.0
    )
    straggler_factor: float = described(
        1.5, "A rank is named as slow if its own work takes this many times as long as that of the others.", gt=1.0
    )


class Replicas(Section):
    """Comparing the weights that ranks hold in common (docs/reliability/replicas.md)."""

    every: int = described(
        100,
        "Steps between two comparisons of hashes of the replicated weights over the ranks; one also precedes every "
        "checkpoint. Weights are hashed in each step, on their device. 0 hashes and compares nothing.",
        "steps",
        ge=0,
    )
    then: Literal["restart", "stop", "report"] = described(
        "restart",
        "What follows when they differ: a restart from the newest checkpoint as after a failure "
        "(cluster.max_failures), the end of the run, or an event alone.",
    )


class Slurm(Section):
    """Options of the batch script that `shardyard submit --on slurm` writes."""

    partition: str | None = described(None, "Partition (--partition).")
    account: str | None = described(None, "Account to charge (--account).")
    qos: str | None = described(None, "Quality of service (--qos).")
    constraint: str | None = described(None, "Features that the nodes must have (--constraint).")
    nodes: int | None = described(None, "Nodes. Default: cluster.workers over cluster.workers_per_node.", "nodes", ge=1)
    exclusive: bool = described(False, "Take whole nodes (--exclusive).")
    signal_seconds: int = described(
        120, "How long before the time limit Slurm sends SIGTERM, for a last checkpoint.", "seconds", ge=10
    )
    setup: list[str] = described([], "Shell lines that run first on each node, such as `module load cuda`.")
    options: list[str] = described([], "Additional sbatch options, such as --mail-type=END.")


class Kubernetes(Section):
    """Settings of the manifests that `shardyard submit --on kuberay` writes."""

    namespace: str = described("default", "Namespace of the job.")
    image: str = described(
        "shardyard:latest", "Container image with Shardyard and Ray; cluster/image/ has the Dockerfile.", min_length=1
    )
    service_account: str | None = described(None, "Service account of the pods.")
    queue: str | None = described(None, "Local queue of Kueue (label kueue.x-k8s.io/queue-name).")
    memory_per_worker: str | None = described(
        None, "Memory of the container of each worker. Default: from the plan.", "bytes", pattern=BYTES_PATTERN
    )
    shared_memory: str | None = described(
        None, "Size of /dev/shm of each pod of workers. Default: the object store's.", "bytes", pattern=BYTES_PATTERN
    )
    object_store_memory: str = described(
        "2GiB", "Size of Ray's object store on each pod.", "bytes", pattern=BYTES_PATTERN
    )
    rdma_resource: str | None = described(
        None, "Extended resource of the RDMA devices, such as rdma/hca or vpc.amazonaws.com/efa; one a pod of GPUs."
    )
    node_selector: dict[str, str] = described({}, "Labels that the nodes of the workers must have.")
    runs_claim: str | None = described(
        None, "Persistent volume claim (ReadWriteMany) that is mounted as the runs folder."
    )
    secrets: list[str] = described(
        [], "Secrets whose keys become environment variables, such as one with WANDB_API_KEY."
    )
    ttl_seconds: int = described(
        0, "How long the pods of a finished job stay, to look into them; they keep their GPUs.", "seconds", ge=0
    )


class Cluster(Section):
    workers: int = described(1, "Number of Ray workers, one rank each (the world size).", "ranks", ge=1)
    min_workers: int | None = described(
        None,
        "The least number of workers. A run then trains on as many as find room, from here to `workers`, with the same "
        "global batches: on fewer when a node is lost, on more when one comes. Default: always `workers`.",
        "ranks",
        ge=1,
    )
    grow_after: float = described(
        60.0,
        "With `min_workers`: for so long there must be room for more workers before a run is saved and goes on on "
        "more of them.",
        "seconds",
        ge=0.0,
    )
    workers_per_node: int | None = described(
        None,
        "Ranks per node. Default: as many as the largest node of the cluster holds; Slurm and Kubernetes take "
        "8 where workers have GPUs and there are more than 8 of them.",
        "ranks",
        ge=1,
    )
    placement: Literal["pack", "spread", "strict_pack", "strict_spread"] | None = described(
        None,
        "Placement strategy of Ray. Default: pack, so neighbours share a node; strict_spread where "
        "workers_per_node is 1.",
    )
    gpus_per_worker: float | None = described(
        None,
        "GPUs of each worker: 1, 0, or a fraction for tests that share one. Default: 1 where machine or cluster have "
        "GPUs, else 0.",
        "GPUs",
        ge=0.0,
        le=1.0,
    )
    cpus_per_worker: int | None = described(
        None,
        "CPU cores that Ray reserves for each worker. Default: one, and one for each reader (data.readers), as far as "
        "the cluster has them.",
        "cores",
        ge=1,
    )
    memory_per_worker: str | None = described(
        None,
        "Device memory of a worker, such as 80GiB, that the plan must fit. Default: that of the GPU found here.",
        "bytes",
        pattern=BYTES_PATTERN,
    )
    address: str | None = described(None, "Ray cluster to use (RAY_ADDRESS wins); by default a local one is started.")
    max_failures: int = described(
        3,
        "Restarts after failures, each from the newest committed checkpoint; a new checkpoint resets the count.",
        "restarts",
        ge=0,
    )
    spares: bool = described(
        True,
        "After 20 seconds of training, start a process for each rank that imports everything at a low priority and "
        "waits: after a failure the spares take over, which saves their imports. Each takes about 400 MiB of host "
        "memory, and imports only where 2 GiB are free.",
    )
    network: Network = described(Network(), "How ranks reach each other.")
    watchdog: Watchdog = described(Watchdog(), "When ranks count as hanging or slow, and what follows.")
    replicas: Replicas = described(Replicas(), "Whether ranks still hold the same weights, and what follows if not.")
    slurm: Slurm = described(Slurm(), "Settings of jobs under Slurm.")
    kubernetes: Kubernetes = described(Kubernetes(), "Settings of jobs under KubeRay.")


class Job(Section):
    """Settings of a run that is submitted as a job, the same for every scheduler."""

    priority: str | None = described(
        None, "Priority class of the scheduler below: Kueue's WorkloadPriorityClass, Slurm's QOS; plain Ray has none."
    )
    time_limit: str | None = described(
        None,
        "Time limit of an attempt, such as 90m, 12h or 2d; training then ends with a checkpoint and exit code 124.",
        pattern=r"^\d+(\.\d+)?(s|m|h|d)$",
    )
    retries: int = described(0, "How often the job restarts automatically after one of the outcomes below.", ge=0)
    on_failed: Literal["resume", "end"] = described(
        "end", "After exit code 1 (the run failed, and cluster.max_failures is used up)."
    )
    on_timeout: Literal["resume", "end"] = described("end", "After exit code 124 (job.time_limit).")
    on_preempted: Literal["resume", "end"] = described(
        "resume", "After exit code 143 (SIGTERM from a scheduler), with a checkpoint."
    )
