"""How a recipe trains: batch, precision, optimizer, schedule, ZeRO, checkpoints."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from shardyard.recipe.lengths import StepsOrShare
from shardyard.recipe.sections.base import BYTES_PATTERN, REQUIRED, Section, described

Precision = Literal["fp32", "bf16", "fp16"]
OptimizerName = Literal["adamw", "adam", "sgd", "adagrad", "rmsprop", "lion", "muon", "adamw_8bit", "paged_adamw_8bit"]
ScheduleName = Literal["constant", "linear", "cosine", "inverse_sqrt", "step", "exponential", "wsd"]


class Train(Section):
    global_batch: int = described(REQUIRED, "Rows per optimizer step, over all ranks.", "sequences", ge=1)
    steps: int | None = described(None, "Optimizer steps; give this, `tokens` or `epochs`.", "steps", ge=1)
    tokens: int | None = described(
        None, "Training tokens, rounded up to whole steps; give this, `steps` or `epochs`.", "tokens", ge=1
    )
    epochs: float | None = described(
        None,
        "Passes over the rows of the training data, rounded up to whole steps; fractions are allowed. The rows are "
        "counted when the run is planned, which reads all data: one source, on this machine.",
        "passes",
        gt=0.0,
    )
    minutes: float | None = described(
        None,
        "Time that training may take; fewer steps are trained where it does not hold all. How many is measured once, "
        "in some seconds before the first step; schedule and cadences are scaled to it. Trials of a sweep train all "
        "steps.",
        "minutes",
        gt=0.0,
    )
    skip_steps: list[Annotated[int, Field(ge=1)] | Annotated[str, Field(pattern=r"^\d+-\d+$")]] = described(
        [],
        "Steps whose batches are not trained on, such as [1200, 1500-1700]: schedule and data go on, nothing is "
        "computed.",
        "steps",
    )
    micro_batch: int | None = described(
        None,
        "Rows that one rank puts through the model at once. Default: the largest that divides a rank's share of the "
        "global batch, holds at most 8192 tokens and fits the memory.",
        "sequences",
        ge=1,
    )
    seed: int = described(
        1234, "Seed of initial weights, data order, dropout, and the generators of Python and NumPy.", ge=0, lt=2**32
    )
    precision: Precision | None = described(
        None,
        "Number format of the forward and backward pass; master weights are fp32. Default: bf16 where the devices that "
        "train have units for it, else fp32; fixed when the run starts.",
    )
    gradient_clipping: float = described(1.0, "Maximum norm of the gradient; 0 turns clipping off.", ge=0.0)
    initial_loss_scale: int = described(
        16, "Initial dynamic loss scale of fp16, as a power of two.", "log2", ge=0, le=32
    )
    threads: int | None = described(
        None, "CPU threads per rank. Default: cluster.cpus_per_worker if it is set, else 1.", "threads", ge=1
    )


class Optimizer(Section):
    name: OptimizerName = described(
        "adamw",
        "Optimizer. adamw_8bit has states in 8 bits, by bitsandbytes (Dettmers et al. 2022); paged_adamw_8bit keeps "
        "them in pages that a full GPU moves to the host.",
    )
    lr: float = described(REQUIRED, "Peak learning rate, which the schedule scales.", gt=0.0)
    weight_decay: float = described(
        0.0,
        "Weight decay on all weights except norms and biases. Decoupled; an L2 penalty for adam, sgd, adagrad and "
        "rmsprop.",
        ge=0.0,
    )
    betas: Annotated[list[float], Field(min_length=2, max_length=2)] = described(
        [0.9, 0.95], "Decay rates of the running averages (adam, adamw in 32 or 8 bits, lion, muon's AdamW part)."
    )
    eps: float = described(1e-8, "Term in the denominator for numerical stability.", gt=0.0)
    momentum: float = described(0.9, "Momentum of sgd, rmsprop and muon.", ge=0.0, lt=1.0)
    nesterov: bool = described(False, "Nesterov momentum (sgd).")
    alpha: float = described(0.99, "Smoothing constant of rmsprop.", ge=0.0, lt=1.0)
    aux_lr: float | None = described(
        None, "Learning rate of the AdamW that muon uses for embeddings, norms and biases. Default: lr.", gt=0.0
    )


class Schedule(Section):
    name: ScheduleName = described("cosine", "Shape of the schedule after the warm-up.")
    warmup: Annotated[int | float, StepsOrShare(least=0)] = described(
        0, "Steps, or share of the run, over which the learning rate rises linearly to its peak.", "steps"
    )
    min_ratio: float = described(
        0.1,
        "Learning rate at the end as a share of the peak (linear, cosine, wsd) or its floor (step, exponential).",
        ge=0.0,
        le=1.0,
    )
    decay_fraction: float = described(0.2, "Share of the steps that wsd spends on its final decay.", gt=0.0, le=1.0)
    step_size: Annotated[int | float, StepsOrShare(least=1)] | None = described(
        None, "Steps, or share of the run, between two drops of the step schedule.", "steps"
    )
    gamma: float = described(
        0.5, "Factor of each drop (step), or of the decay over the whole run (exponential).", gt=0.0, le=1.0
    )


class Zero(Section):
    stage: Literal[0, 1, 2, 3] = described(
        1, "ZeRO stage: 1 shards optimizer states over the ranks, 2 also gradients, 3 also parameters."
    )
    offload_optimizer: bool | Literal["cpu", "nvme"] = described(
        False,
        "Keep optimizer states in CPU memory (cpu or true; stages 1 to 3), or in files of a local disk (nvme; stage 3, "
        "with zero.nvme_path): ZeRO-Infinity. The CPUs update them.",
    )
    offload_parameters: bool | Literal["cpu", "nvme"] = described(
        False, "Keep parameters in CPU memory (cpu or true; stage 3); nvme is refused, with the reason."
    )
    nvme_path: str | None = described(
        None,
        "Folder on a local disk of every host, for offloading to nvme. Each rank makes a folder of its own in it, "
        "which is removed when the rank ends, or by the next one that starts there.",
        min_length=1,
    )
    sub_group_size: int | None = described(
        None,
        "Stage 3: numbers of a rank that the optimizer updates at once. Default: 1 billion; with nvme 50 million, of "
        "which five buffers of 4 bytes a number are in host memory.",
        "numbers",
        ge=1,
    )
    pin_memory: bool | None = described(
        None,
        "Page-lock host memory of offloaded states, so that GPUs copy it faster; false where ulimit -l is small. "
        "Default: true with GPUs.",
    )
    bucket_bytes: int | None = described(
        None,
        "Size of a bucket in which gradients are reduced and parameters gathered, 4 bytes a number. Default: 40 "
        "million numbers, a million for each data-parallel rank if that is more, at most 500 million.",
        "bytes",
        ge=1_000,
    )
    live_parameters: int = described(
        1_000_000_000,
        "Stage 3: most gathered numbers, and how many of the next ones must need a gathered weight again for it to "
        "stay. Fewer take less memory and are gathered more often.",
        "numbers",
        ge=0,
    )
    persistence_threshold: int = described(
        100_000, "Stage 3 keeps weights of fewer numbers whole on each rank: norms, biases.", "numbers", ge=0
    )
    hpz_partition_size: int = described(
        1,
        "Stage 3: consecutive ranks, such as those of a node, that keep a second sharded copy of the weights, so that "
        "only the forward pass gathers from all ranks, and the backward pass from these (ZeRO++ hpZ); 1 keeps none.",
        "ranks",
        ge=1,
    )
    communication_data_type: Literal["fp32", "bf16", "fp16"] = described(
        "fp32",
        "Number format in which gradients are summed over the ranks. 16 bits halve the traffic, and round the sum of "
        "every reduction to 8 (bf16) or 11 (fp16) significant bits.",
    )
    grad_accum_dtype: Literal["fp32", "bf16", "fp16"] = described(
        "fp32",
        "Number format in which gradients of micro-batches are added up, and kept until the optimizer's step: fp32, or "
        "train.precision, which takes half the memory.",
    )


class Checkpoint(Section):
    every: Annotated[int | float | str, StepsOrShare(least=1, timed=True)] | None = described(
        None,
        "Steps, share of the run, or time by the clock of rank 0 (30m) between two checkpoints. Default: a tenth of "
        "the run; one is always written at the end. The forecast of a plan gives the best time.",
        "steps",
    )
    keep: int = described(
        3,
        "Number of newest checkpoints to keep; older ones are removed once a newer one is committed.",
        "checkpoints",
        ge=1,
    )
    keep_damaged: int = described(
        1,
        "Number of newest damaged checkpoints (damaged-step-…) to keep for inspection; older ones are removed with the "
        "next checkpoint. 0 keeps none.",
        "checkpoints",
        ge=0,
    )
    background: bool | None = described(
        None,
        "Write checkpoints while training goes on: a step waits only for a copy of a rank's states in host memory, "
        "which the plan counts; true is refused where it lacks the room. false writes them between two steps, without "
        "the copy. Default: false.",
    )
    mirror: str | None = described(
        None,
        "Address of a folder in an object store, such as s3://BUCKET/FOLDER, gs:// or az://. Each checkpoint is copied "
        "there when it is complete, with the files of the run folder, to a folder named as the run; checkpoint.keep "
        "holds there too. The process that drives the run copies, and takes credentials from its environment.",
        min_length=1,
    )
    shard_size: str = described(
        "5GB",
        "Largest file of weights of the exported model (final/), such as 5GB or 500MB; a larger model is several "
        "files, which the ranks write at the same time.",
        "bytes",
        pattern=BYTES_PATTERN,
    )
