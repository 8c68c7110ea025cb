"""Rules that the schema cannot express: fields that are valid alone but not together.

Each rule yields a path and a message that tells the user what to do. `check` runs all of them, so that users see all
problems at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from shardyard import plugins
from shardyard.errors import UsageError
from shardyard.objectives.registry import objective_spec, specs
from shardyard.objectives.spec import OPTIONAL_SECTIONS
from shardyard.recipe.batching import streams_of, training_steps
from shardyard.recipe.fields import Path
from shardyard.recipe.lengths import decay_steps, in_steps
from shardyard.recipe.mesh import data_size
from shardyard.recipe.mixture.stages import stage_recipes
from shardyard.recipe.rules.anomalies import anomaly_rules
from shardyard.recipe.rules.causality import causality_rules
from shardyard.recipe.rules.chat import chat_rules
from shardyard.recipe.rules.checkpoint import checkpoint_rules
from shardyard.recipe.rules.cluster import cluster_rules
from shardyard.recipe.rules.data import data_rules
from shardyard.recipe.rules.decoders import decoder_rules
from shardyard.recipe.rules.experts import expert_rules
from shardyard.recipe.rules.finetune import finetune_rules
from shardyard.recipe.rules.heads import head_rules
from shardyard.recipe.rules.mixture import mixture_rules
from shardyard.recipe.rules.model import model_rules
from shardyard.recipe.rules.offload import offload_rules
from shardyard.recipe.rules.parallel import parallel_rules
from shardyard.recipe.rules.pictures import picture_rules
from shardyard.recipe.rules.secrets import secret_rules
from shardyard.recipe.rules.sizes import size_rules
from shardyard.recipe.rules.tokens import token_rules
from shardyard.recipe.rules.values import value_rules
from shardyard.recipe.schema import Optimizer, Recipe, Schedule, Section
from shardyard.recipe.sections.eight_bits import EIGHT_BITS, NO_PAGES_ON_CPU, PAGED

Finding = tuple[Path, str]

# The optimizers and schedules that use a setting; for others it would have no effect.
_OPTIMIZER_FIELDS = {
    "betas": ("adamw", "adam", "lion", "muon", *EIGHT_BITS),
    "eps": ("adamw", "adam", "adagrad", "rmsprop", "muon", *EIGHT_BITS),
    "momentum": ("sgd", "rmsprop", "muon"),
    "nesterov": ("sgd",),
    "alpha": ("rmsprop",),
    "aux_lr": ("muon",),
}
_SCHEDULE_FIELDS = {
    "min_ratio": ("linear", "cosine", "wsd", "step", "exponential"),
    "decay_fraction": ("wsd",),
    "step_size": ("step",),
    "gamma": ("step", "exponential"),
}
# data.validation is a single dataset called validation.
_METRIC = "eval/validation/"
NO_FLASH_ON_CPU = "flash_attention_2 needs a GPU; use sdpa on the CPU"


def check(recipe: Recipe) -> list[Finding]:
    """All rules that a recipe with valid fields breaks, as (path, message)."""
    try:
        objective_spec(recipe.objective)
    except UsageError as error:
        # Nearly every rule needs to know what the objective reads.
        return [(("objective",), str(error).removesuffix("."))]
    found = [finding for rule in _RULES for finding in rule(recipe)]
    return found or list(_later_stages(recipe))


def _later_stages(recipe: Recipe) -> Iterator[Finding]:
    """What the recipes of later stages break, of a recipe that is sound otherwise."""
    told: set[str] = set()
    for number, later in enumerate(stage_recipes(recipe)[1:]):
        for rule in (_sharing, _objective, model_rules, decoder_rules, parallel_rules):
            for path, message in rule(later):
                if message not in told:
                    told.add(message)
                    yield ("data", "stages", number), f"{'.'.join(map(str, path))}: {message}"


def _changed(section: Section, name: str) -> bool:
    """Whether a field differs from its default; an explicit default, as in resolved.yaml, does not count."""
    return bool(getattr(section, name) != type(section).model_fields[name].default)


def _length(recipe: Recipe) -> Iterator[Finding]:
    train = recipe.train
    given = [name for name in ("steps", "tokens", "epochs") if getattr(train, name) is not None]
    if not given:
        most = ": the upper limit for `minutes`" if train.minutes is not None else ""
        yield ("train",), f"has no length; give train.steps, train.tokens or train.epochs{most}"
    if len(given) > 1:
        yield (
            ("train", given[-1]),
            (
                f"{' and '.join(given)} {'both' if len(given) == 2 else 'all'} set the length of training; keep one of "
                "them"
            ),
        )


def _sharing(recipe: Recipe) -> Iterator[Finding]:
    """Check how a global batch is divided over workers, micro-batches and streams."""
    batch, workers = recipe.train.global_batch, data_size(recipe, recipe.cluster.workers)
    rows, rest = divmod(batch, workers)
    if rest:
        better = workers * max(1, round(batch / workers))
        yield (
            ("train", "global_batch"),
            (f"{batch} rows cannot be shared by {workers} workers; set a multiple of {workers} such as {better}"),
        )
    elif recipe.train.micro_batch is not None and rows % recipe.train.micro_batch:
        fitting = next(n for n in range(min(rows, recipe.train.micro_batch), 0, -1) if rows % n == 0)
        yield (
            ("train", "micro_batch"),
            (
                f"{recipe.train.micro_batch} does not divide the {rows} rows of each worker "
                f"({batch} / {workers}); {fitting} does"
            ),
        )
    if rest:
        return
    streams = streams_of(recipe, recipe.cluster.workers)
    if streams % workers:
        yield (
            ("data", "streams"),
            f"{streams} is not divisible by {workers} workers; set it to {_streams_for(streams, workers)}",
        )


def _streams_for(streams: int, workers: int) -> int:
    return workers * math.ceil(streams / workers)


def _optimizer(recipe: Recipe) -> Iterator[Finding]:
    optimizer: Optimizer = recipe.optimizer
    for name, owners in _OPTIMIZER_FIELDS.items():
        if optimizer.name not in owners and _changed(optimizer, name):
            yield ("optimizer", name), (f"does nothing for {optimizer.name}, only for {', '.join(owners)}; remove it")
    if optimizer.name == "sgd" and optimizer.nesterov and optimizer.momentum == 0:
        yield ("optimizer", "nesterov"), "needs momentum above 0; set optimizer.momentum, 0.9 for example"
    on_cpus = recipe.cluster.gpus_per_worker == 0
    if optimizer.name in PAGED and on_cpus:
        yield ("optimizer", "name"), NO_PAGES_ON_CPU
    if any(not 0 <= beta < 1 for beta in optimizer.betas):
        yield ("optimizer", "betas"), f"must be at least 0 and less than 1 each, got {optimizer.betas}"


def _schedule(recipe: Recipe) -> Iterator[Finding]:
    schedule: Schedule = recipe.schedule
    steps = training_steps(recipe)
    if steps is not None and in_steps(schedule.warmup, steps, most=steps - 1) >= steps:
        yield (
            ("schedule", "warmup"),
            (
                f"{schedule.warmup} steps of warm-up take all of the {steps} steps of training; set fewer, or a share "
                "of the run such as 0.1"
            ),
        )
    elif schedule.name == "wsd" and (overlap := _overlap(schedule, steps)):
        yield ("schedule", "decay_fraction"), overlap
    if schedule.name == "step" and schedule.step_size is None:
        yield ("schedule", "name"), "the step schedule needs schedule.step_size, the steps between two drops"
    for name, owners in _SCHEDULE_FIELDS.items():
        if schedule.name not in owners and _changed(schedule, name):
            yield ("schedule", name), f"does nothing for {schedule.name}, only for {', '.join(owners)}; remove it"


def _overlap(schedule: Schedule, steps: int | None) -> str:
    """Why the warm-up and decay of wsd do not fit the run; "" if they do. Shares are compared without rounding."""
    fraction = schedule.decay_fraction
    if not isinstance(schedule.warmup, int):
        if schedule.warmup + fraction <= 1 + 1e-9:
            return ""
        warmup, decay, whole = f"{schedule.warmup:g}", f"{fraction:g}", "at most 1"
    elif steps is None or schedule.warmup + decay_steps(fraction, steps) <= steps:
        return ""
    else:
        warmup, whole = f"{schedule.warmup} steps", f"at most the {steps} steps of training"
        decay = f"{decay_steps(fraction, steps)} steps"
    return (
        f"is {fraction:g}: the decay ({decay}) would begin before the warm-up ({warmup}) ends, and the rate would "
        f"jump; together they may be {whole}"
    )


def _second_copy(recipe: Recipe) -> Iterator[Finding]:
    """ZeRO++ hpZ: the ranks that share a second copy of the weights."""
    size, path, workers = recipe.zero.hpz_partition_size, ("zero", "hpz_partition_size"), recipe.cluster.workers
    if size == 1:
        return
    if recipe.zero.stage != 3:
        yield path, f"needs ZeRO stage 3, not {recipe.zero.stage}; set it to 1"
    elif workers % size or size >= workers:
        fitting = [divisor for divisor in range(1, workers) if workers % divisor == 0]
        yield path, f"is {size}, and must divide the {workers} ranks and be fewer; sizes that do: {fitting}"
    axes = [name for name in ("tensor", "sequence", "expert") if getattr(recipe.parallel, name) > 1]
    if axes:
        yield path, f"is not tested with parallel.{axes[0]}; set it to 1"
    if recipe.zero.offload_parameters:
        yield path, "is not tested with zero.offload_parameters; set it to 1"
    if recipe.model.adapter is not None:
        yield path, "is not tested with adapters; set it to 1"


def _zero(recipe: Recipe) -> Iterator[Finding]:
    zero = recipe.zero
    yield from _second_copy(recipe)
    yield from offload_rules(recipe)
    precision = recipe.train.precision
    if zero.communication_data_type == "fp16" and precision != "fp16":
        yield (
            ("zero", "communication_data_type"),
            "has the narrow range of fp16, for which only train.precision fp16 scales gradients; use bf16 or fp32",
        )
    if zero.grad_accum_dtype not in ("fp32", precision or "bf16"):
        yield (
            ("zero", "grad_accum_dtype"),
            f"is {zero.grad_accum_dtype}, and train.precision {precision or 'bf16 or fp32'}: use fp32 or that format",
        )


def _early_stopping(recipe: Recipe) -> Iterator[Finding]:
    stopping = recipe.evaluate.early_stopping
    names = [_METRIC + name for name in ("loss", *objective_spec(recipe.objective).metrics)]
    if stopping is not None and stopping.metric not in names:
        yield (
            ("evaluate", "early_stopping", "metric"),
            f"{stopping.metric!r} is not a metric of {recipe.objective}; write one of {', '.join(names)}",
        )


def _hooks(recipe: Recipe) -> Iterator[Finding]:
    """Check that the hooks exist; their code is imported when the run starts."""
    for index, hook in enumerate(recipe.hooks):
        problem = plugins.problem_of("hooks", hook.name)
        if problem is not None:
            yield ("hooks", index, "name"), problem


def _trackers(recipe: Recipe) -> Iterator[Finding]:
    for index, tracker in enumerate(recipe.tracking.trackers):
        problem: str | None = "W&B is set by tracking.wandb; take it out here"
        if tracker.name != "wandb":
            problem = plugins.problem_of("trackers", tracker.name, ("wandb",))
        if problem is not None:
            yield ("tracking", "trackers", index, "name"), problem


def _objective(recipe: Recipe) -> Iterator[Finding]:
    """Check sections and lengths against what the objective reads."""
    spec = objective_spec(recipe.objective)
    for name in OPTIONAL_SECTIONS:
        # Of the losses of a target, the z-loss depends on its logits alone, whatever else an objective does with them.
        given = recipe.loss.model_copy(update={"z_loss": 0.0}) if name == "loss" else getattr(recipe, name)
        if name not in spec.sections and given != type(given)():
            owners = ", ".join(other.name for other in specs() if name in other.sections)
            yield (name,), f"does nothing for the objective {recipe.objective}, only for {owners}; remove it"
    if spec.text and recipe.data.sequence_length is None:
        yield ("data",), f"lacks sequence_length, the tokens of a row, which {recipe.objective} needs"
    if not spec.text and recipe.train.tokens is not None:
        yield ("train", "tokens"), f"{recipe.objective} has no tokens to count; give train.steps"
    if recipe.sample.prompts and not spec.generates:
        yield ("sample", "prompts"), f"a model trained for {recipe.objective} cannot continue prompts; remove them"
    rows = recipe.train.global_batch // data_size(recipe, recipe.cluster.workers)
    if spec.whole_batch and recipe.train.micro_batch not in (None, rows):
        yield (
            ("train", "micro_batch"),
            (
                f"{recipe.objective} compares all rows with each other, so a worker's {rows} rows go through the model "
                "at once; remove it"
            ),
        )
    if recipe.loss.z_loss and not spec.vocabulary:
        owners = ", ".join(other.name for other in specs() if other.vocabulary)
        yield (
            ("loss", "z_loss"),
            f"needs target tokens of a vocabulary, of which {recipe.objective} predicts none, only {owners}; remove it",
        )
    if recipe.loss.name == "focal" and recipe.loss.label_smoothing:
        yield ("loss", "label_smoothing"), "focal loss has none; remove it, or use cross_entropy"
    if spec.frozen == "teacher" and recipe.distillation.teacher is None:
        yield ("distillation",), "lacks teacher, the model to learn from"


def _precision(recipe: Recipe) -> Iterator[Finding]:
    """Check the precision. Checks that depend on the machine are part of the plan, so a recipe is valid on all hosts or
    on none."""
    fp16 = recipe.train.precision == "fp16"
    if recipe.model.attention == "flash_attention_2":
        if recipe.cluster.gpus_per_worker == 0:
            yield ("model", "attention"), NO_FLASH_ON_CPU
        if recipe.train.precision == "fp32":
            yield ("model", "attention"), "flash_attention_2 needs bf16 or fp16; change train.precision or use sdpa"
    if not fp16 and _changed(recipe.train, "initial_loss_scale"):
        other = recipe.train.precision or "the derived train.precision, which never is fp16"
        yield ("train", "initial_loss_scale"), f"only fp16 has a loss scale, not {other}; remove it"


_RULES: tuple[Callable[[Recipe], Iterator[Finding]], ...] = (
    _length,
    _sharing,
    _optimizer,
    _schedule,
    _zero,
    _early_stopping,
    _hooks,
    _trackers,
    _objective,
    _precision,
    checkpoint_rules,
    anomaly_rules,
    cluster_rules,
    size_rules,
    model_rules,
    causality_rules,
    parallel_rules,
    expert_rules,
    data_rules,
    value_rules,
    mixture_rules,
    token_rules,
    chat_rules,
    decoder_rules,
    picture_rules,
    finetune_rules,
    head_rules,
    secret_rules,
)
