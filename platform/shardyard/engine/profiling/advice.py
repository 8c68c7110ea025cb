"""What to change first, from the parts of a step and the settings of a run. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from shardyard.planning.plan import RunPlan
from shardyard.recipe.precision import precision_of
from shardyard.recipe.schema import Recipe
from shardyard.tracking.run.profile import Advice, RankTimes

MOST = 3
# Shares of a step below which a part is as it should be.
_LITTLE, _HOOKS, _UPDATE = 0.02, 0.1, 0.15
# Of the forward and backward pass between the slowest and the mean rank.
_UNEVEN = 0.05
# Of the forward and backward pass: the second forward pass of activation checkpointing is a quarter.
_RECOMPUTED = 0.25
# Share of a step in which threads make rows, from which on they are in its way.
_BUSY = 0.3
# Tokens of a micro-batch below which products of matrices are too small for a GPU, or for a CPU.
_FEW_TOKENS = {True: 4096, False: 512}


@dataclass(frozen=True)
class Settings:
    """What of a run the advice depends on; `rows`: of a rank in a global batch."""

    gpu: bool
    ranks: int
    rows: int
    micro_batch: int
    accumulation: int
    tokens_per_row: int
    stage: int
    precision: str
    bf16: bool
    offload_optimizer: bool
    offload_parameters: bool
    checkpointing: bool
    compile: bool
    readers: int


def settings_of(recipe: Recipe, plan: RunPlan) -> Settings:
    """The settings of a run."""
    return Settings(
        gpu=plan.world.gpu,
        ranks=plan.mesh.data,
        rows=plan.rows_per_rank,
        micro_batch=plan.micro_batch,
        accumulation=plan.accumulation,
        tokens_per_row=plan.tokens_per_row,
        stage=recipe.zero.stage,
        precision=precision_of(recipe),
        bf16=bool(plan.world.bf16.units),
        offload_optimizer=bool(recipe.zero.offload_optimizer),
        offload_parameters=bool(recipe.zero.offload_parameters),
        checkpointing=str(recipe.model.activation_checkpointing).lower() not in ("false", "none"),
        compile=bool(recipe.model.compile),
        readers=plan.readers,
    )


def advise(ranks: Sequence[RankTimes], settings: Settings) -> tuple[Advice, ...]:
    """At most three pieces of advice, the one that concerns most of the step first."""
    whole = sum(one.step_seconds for one in ranks) or 1.0
    shares = {part: sum(one.parts.get(part, 0.0) for one in ranks) / whole for one in ranks for part in one.parts}
    reading = sum(one.reading_seconds for one in ranks) / whole
    found = [*_around(shares, settings), *_passes(shares, settings), *_ranks(ranks, shares)]
    found += _reading(reading, shares, settings)
    worth = [one for one in found if one.share >= _LITTLE]
    return tuple(sorted(worth, key=lambda one: -one.share)[:MOST])


def _around(shares: dict[str, float], settings: Settings) -> Iterator[Advice]:
    """About what is not computing the model."""
    data, sent = shares.get("data", 0.0), shares.get("communication", 0.0)
    more = max(2, 2 * settings.readers)
    yield Advice(
        data,
        f"Steps wait for their batch for {data:.0%} of the time: rows are made too slowly. More readers make them side "
        "by side; `shardyard data tokenize RECIPE` makes tokens once; a slow network or file system needs a copy "
        "nearby.",
        (f"data.readers={more}",),
    )
    yield Advice(sent, *_about_communication(sent, settings))
    update, hooks, idle = (shares.get(part, 0.0) for part in ("optimizer", "hooks", "waiting"))
    if settings.offload_optimizer:
        text = f"The update takes {update:.0%} of a step because the optimizer's states are in CPU memory. "
        yield Advice(update, f"{text}Keep them on the GPUs if they fit.", ("zero.offload_optimizer=false",))
    elif update > _UPDATE:
        text = f"The update takes {update:.0%} of a step. "
        if settings.stage == 0 and settings.ranks > 1:
            yield Advice(update, f"{text}At stage 1 each rank updates only its part.", ("zero.stage=1",))
        else:
            yield Advice(update, f"{text}A larger global batch updates less often for the same tokens.")
    if hooks > _HOOKS:
        text = (
            f"Evaluations, checkpoints and other hooks take {hooks:.0%} of the profiled time: let them run less often."
        )
        yield Advice(hooks, text)
    what = "The GPU has no work" if settings.gpu else "Nothing is computed"
    text = f"{what} for {idle:.0%} of a step, between the operations that Python starts: "
    text += "compiled models and larger micro-batches start fewer."
    yield Advice(idle, text, () if settings.compile else ("model.compile=true",))


def _reading(reading: float, shares: dict[str, float], settings: Settings) -> Iterator[Advice]:
    """About threads that make rows beside the step: they hold Python's lock, and on CPUs they need the same cores."""
    if reading >= _BUSY:
        text = (
            f"Rows are made by threads of the training process, which compute for {reading:.0%} of a step and hold up "
        )
        text += "its own work. `shardyard data tokenize RECIPE` makes tokens once, `shardyard data build FILE` filters "
        text += "once."
        yield Advice(min(reading, shares.get("waiting", 0.0) if settings.gpu else 1.0), text)


def _about_communication(share: float, settings: Settings) -> tuple[str, tuple[str, ...]]:
    text = f"Ranks wait for communication for {share:.0%} of a step. "
    if settings.stage == 3:
        text += "Stage 3 gathers all parameters twice a micro-batch: if the states fit at stage 1, it sends far less."
        return text, ("zero.stage=1",)
    if settings.stage == 2 and settings.accumulation > 1:
        return f"{text}Stage 2 reduces gradients after each micro-batch, stage 1 once a step.", ("zero.stage=1",)
    return f"{text}A larger global batch sends as much for more tokens, and a faster network sends it sooner.", ()


def _passes(shares: dict[str, float], settings: Settings) -> Iterator[Advice]:
    """About the forward and backward pass; shares are what a change may save."""
    computed = shares.get("forward", 0.0) + shares.get("backward", 0.0)
    if settings.precision == "fp32" and settings.bf16:
        text = (
            f"The passes take {computed:.0%} of a step in fp32; these devices compute in bf16 at least twice as fast."
        )
        yield Advice(computed / 2, text, ("train.precision=bf16",))
    if settings.checkpointing:
        text = "Activation checkpointing computes the forward pass twice. Without it the same step needs more memory."
        yield Advice(computed * _RECOMPUTED, text, ("model.activation_checkpointing=false",))
    if settings.offload_parameters:
        text = "Parameters are copied from CPU memory for each pass. Keep them on the GPUs if they fit."
        yield Advice(computed / 2, text, ("zero.offload_parameters=false",))
    tokens = settings.micro_batch * settings.tokens_per_row
    if settings.accumulation > 1 and tokens < _FEW_TOKENS[settings.gpu]:
        larger = next(size for size in range(settings.micro_batch + 1, settings.rows + 1) if settings.rows % size == 0)
        text = f"A micro-batch has only {tokens} tokens, so each product of matrices is small. Larger ones need memory."
        yield Advice(computed / 4, text, (f"train.micro_batch={larger}",))
    if not settings.compile:
        text = f"The passes take {computed:.0%} of a step; torch.compile fuses their small operations."
        yield Advice(computed / 10, text, ("model.compile=true",))


def _ranks(ranks: Sequence[RankTimes], shares: dict[str, float]) -> Iterator[Advice]:
    """About ranks that compute longer than others, for which all wait."""
    work = {one.rank: one.parts.get("forward", 0.0) + one.parts.get("backward", 0.0) for one in ranks}
    mean = sum(work.values()) / len(work)
    slowest = max(work, key=lambda rank: work[rank])
    excess = work[slowest] / mean - 1 if mean else 0.0
    if len(work) > 1 and excess > _UNEVEN:
        text = (
            f"Rank {slowest} computes {excess:.0%} longer than the mean rank, and all others wait for it: look at its "
        )
        text += "machine (clock, other processes), or at rows of very different lengths (data.group_by_length)."
        yield Advice((shares.get("forward", 0.0) + shares.get("backward", 0.0)) * excess, text)
