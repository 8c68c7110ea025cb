"""The search for ways to train a recipe that fit, and are fast: each one planned and forecast like a plan of its own.

Pure arithmetic: a model is measured once, and a way costs about a millisecond.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from shardyard.errors import RecipeError
from shardyard.planning.architecture import Architecture
from shardyard.planning.forecast.forecast import Forecast, forecast, world_on
from shardyard.planning.forecast.hardware import USUAL_PER_NODE, Hardware
from shardyard.planning.micro_batch import MAX_MICRO_BATCH_TOKENS
from shardyard.planning.plan import RunPlan, World, fixed, make_plan
from shardyard.planning.search.space import Changes, axes, changed, differing, memory_settings, override
from shardyard.recipe.rules.rules import check
from shardyard.recipe.schema import Recipe

# A micro-batch above what a plan takes by itself can spare communication; beyond this many tokens it does no more.
_MOST_TOKENS = 8 * MAX_MICRO_BATCH_TOKENS
# Ways that differ by less than this, as a share, are as fast, and as a share of the device need as much memory.
_AS_FAST, _AS_LARGE = 0.02, 0.05
# The share of a device that a proposed way leaves free, for what an estimate does not know: fragments, kernels, NCCL.
SPARE = 0.05


@dataclass(frozen=True)
class Way:
    """One way to train a recipe. changes: fields that differ from it. forecast: None without named hardware."""

    changes: Changes
    gpus: int
    plan: RunPlan
    forecast: Forecast | None

    @property
    def overrides(self) -> tuple[str, ...]:
        """The changes as -s takes them."""
        return tuple(override(path, value) for path, value in self.changes.items())

    @property
    def rate(self) -> float:
        """Tokens per second; 0 if they are not forecast."""
        return 0.0 if self.forecast is None else self.forecast.tokens_per_second

    @property
    def fits(self) -> bool:
        """Whether it fits the device, whose memory is known."""
        return self.plan.fits is True

    @property
    def headroom_bytes(self) -> int:
        """Memory of the device that the plan leaves free; negative if it does not fit."""
        return (self.plan.world.device_bytes or 0) - self.plan.memory.device_bytes


@dataclass(frozen=True)
class Question:
    """What is searched for: a recipe with one worker on each device of `world`, and what is known of it.

    measure: the sizes of the model of a recipe that differs in `model.activation_checkpointing` alone.
    hardware: for forecasts; None if it is not named.
    """

    recipe: Recipe
    plan: RunPlan
    measure: Callable[[Recipe], Architecture]
    hardware: Hardware | None

    def as_planned(self) -> Recipe:
        """The recipe with its length in steps, whatever it was given in, and the sizes of its sources."""
        pinned = fixed(self.recipe, self.plan)
        update = {"model": self.recipe.model} | (
            {} if self.recipe.train.precision else {"train": pinned.train.model_copy(update={"precision": None})}
        )
        return pinned.model_copy(update=update)

    def world(self, gpus: int) -> World:
        """The world of so many ranks, with devices like those of the plan."""
        if self.hardware is None:
            return replace(self.plan.world, size=gpus)
        return world_on(replace(self.hardware, gpus=gpus), self.plan.world.device_bytes)

    def hardware_of(self, gpus: int) -> Hardware | None:
        """The hardware with so many GPUs."""
        if self.hardware is None:
            return None
        return replace(self.hardware, gpus=gpus, per_node=min(self.hardware.per_node, gpus))


def ways(question: Question, gpus: int | None = None) -> list[Way]:
    """Every way that `gpus` devices (by default, those of the question) can be arranged, whether or not it fits.

    Other numbers of devices than that of the question need a network only if forecasts are wanted.
    """
    count = gpus or question.plan.world.size
    recipe = changed(question.as_planned(), {"cluster.workers": count})
    per_node = question.hardware.per_node if question.hardware is not None else USUAL_PER_NODE
    architecture = question.plan.architecture
    found = []
    for sizes in axes(recipe, architecture, count, min(per_node, count)):
        for settings in memory_settings(recipe):
            found += list(_ways_of(question, recipe, {**sizes, **settings}, count))
    return found


def _ways_of(question: Question, recipe: Recipe, settings: Changes, gpus: int) -> Iterator[Way]:
    """The ways with these settings that differ in their micro-batch: the plan's own, and larger ones that fit."""
    pinned = recipe.train.micro_batch
    first = _way(question, recipe, {**settings, "train.micro_batch": None}, gpus)
    if first is None:
        return
    yield first
    if pinned is not None and pinned != first.plan.micro_batch:
        given = _way(question, recipe, {**settings, "train.micro_batch": pinned}, gpus)
        if given is not None:
            yield given
    rows, own = first.plan.rows_per_rank, first.plan.micro_batch
    for micro_batch in (rows_ for rows_ in range(own + 1, rows + 1) if rows % rows_ == 0):
        if not first.fits or micro_batch * first.plan.tokens_per_row > _MOST_TOKENS:
            return
        larger = _way(question, recipe, {**settings, "train.micro_batch": micro_batch}, gpus)
        if larger is None or not larger.fits:
            return
        yield larger


def _way(question: Question, recipe: Recipe, settings: Changes, gpus: int) -> Way | None:
    """One way; None if the batch cannot be shared like this."""
    if recipe.train.micro_batch == settings["train.micro_batch"]:
        settings = {path: value for path, value in settings.items() if path != "train.micro_batch"}
    other = changed(recipe, settings)
    try:
        plan = make_plan(other, question.measure(other), question.world(gpus))
    except RecipeError:
        return None
    hardware = question.hardware_of(gpus)
    # The speed of what does not fit is of no use.
    found = forecast(other, plan, hardware) if hardware is not None and plan.fits else None
    return Way(differing(recipe, settings), gpus, plan, found)


def holds(question: Question, way: Way, loaded: Recipe) -> bool:
    """Whether a recipe, loaded with the overrides of a way, has the plan that the search promises."""
    plan = make_plan(loaded, question.measure(loaded), question.world(way.gpus), rows=way.plan.steps)
    return plan.memory == way.plan.memory and plan.micro_batch == way.plan.micro_batch


def sound(question: Question, way: Way) -> bool:
    """Whether the recipe's rules accept a way."""
    recipe = changed(question.as_planned(), {"cluster.workers": way.gpus})
    return not check(changed(recipe, way.changes))


def proposable(found: Sequence[Way]) -> list[Way]:
    """The ways that fit and leave something free; if none does, all that fit."""
    fitting = [way for way in found if way.fits]
    spare = [way for way in fitting if way.headroom_bytes >= SPARE * (way.plan.world.device_bytes or 0)]
    return spare or fitting


def front(question: Question, found: Sequence[Way]) -> list[Way]:
    """The ways that no other one beats in speed, free memory and number of devices, fastest first.

    One way beats another if it needs no more devices, and is as fast and leaves as much memory, within what forecasts
    can tell apart. Of smaller numbers of devices than that of the question, only the fastest way of each is of use.
    """
    kept: list[Way] = []
    fitting, most = proposable(found), question.plan.world.size
    for way in sorted(fitting, key=lambda way: (-way.rate, len(way.changes), way.gpus)):
        beaten = any(one.gpus <= way.gpus and (way.gpus < most or _as_large(one, way)) for one in kept)
        if not beaten and sound(question, way):
            kept.append(_simplest(question, way, fitting))
    return list({(way.overrides, way.gpus): way for way in kept}.values())


def _as_large(one: Way, way: Way) -> bool:
    """Whether `one` leaves about as much memory as `way`, or more."""
    return one.headroom_bytes + _AS_LARGE * (way.plan.world.device_bytes or 0) >= way.headroom_bytes


def _simplest(question: Question, way: Way, found: Sequence[Way]) -> Way:
    """The way with the fewest changes that is as good as `way`."""
    as_good = [
        one for one in found if one.gpus == way.gpus and one.rate >= (1 - _AS_FAST) * way.rate and _as_large(one, way)
    ]
    ordered = sorted(as_good, key=lambda one: (len(one.changes), -one.rate))
    return next((one for one in ordered if sound(question, one)), way)


def ranked_changes(question: Question, found: Sequence[Way], most: int = 5) -> list[Way]:
    """The changes that make the recipe fit or go faster, the fastest first; each is worth its further fields.

    Without a forecast, only those that make it fit, with as few fields as that takes.
    """
    now = next((way for way in found if not way.changes), None)
    fits = now is not None and now.fits
    if question.hardware is None and fits:
        return []
    best = now.rate if now is not None and fits else 0.0
    kept: list[Way] = []
    changing = [way for way in proposable(found) if way.changes]
    for number in sorted({len(way.changes) for way in changing}):
        same = [way for way in changing if len(way.changes) == number]
        if question.hardware is None:
            kept = [way for way in same if sound(question, way)][:most]
            if kept:
                return kept
            continue
        faster = (way for way in sorted(same, key=lambda way: -way.rate) if way.rate > (1 + _AS_FAST) * best)
        way = next((way for way in faster if sound(question, way)), None)
        if way is not None:
            kept.append(way)
            best = way.rate
    return kept[::-1][:most]


def least(found: Sequence[Way]) -> Way | None:
    """The way that needs the least memory, fitting or not."""
    return min(found, key=lambda way: (way.plan.memory.device_bytes, len(way.changes)), default=None)


def fewest_devices(question: Question, most: int = 1024) -> Way | None:
    """Where nothing fits: the way that needs the least memory on the smallest larger number of devices that has one.

    Numbers are doubled, as far as the rows of a global batch can be shared.
    """
    plain, gpus = replace(question, hardware=None), question.plan.world.size
    while (gpus := 2 * gpus) <= most:
        found = least([way for way in ways(plain, gpus) if way.fits])
        if found is not None:
            return found
    return None
