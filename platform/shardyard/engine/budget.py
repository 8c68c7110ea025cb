"""The time budget: the number of steps that fit `train.minutes` is measured before training and then fixed.

The schedule needs the length of the run before the first step, and a resumed or repeated run must train the same steps
on any machine. So a few steps and an evaluation are timed on a temporary engine; the result becomes `train.steps` of
the run, with warm-up and intervals scaled to it.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import torch

from shardyard.data.stream.loader import TrainLoader
from shardyard.engine.components import make_components, with_frozen
from shardyard.engine.deepspeed.engine import LearningRate, start_engine
from shardyard.engine.deepspeed.sharding import start_frozen
from shardyard.engine.hooks.base import Hook, NullEventLog
from shardyard.engine.hooks.evaluate import EvaluateHook
from shardyard.engine.hooks.sampling import SampleHook
from shardyard.engine.job import Job
from shardyard.engine.mesh import Mesh
from shardyard.engine.parallel.rows import on_shared_rows, whole_rows
from shardyard.engine.shared_rows import shared_held_out
from shardyard.engine.step import train_step
from shardyard.engine.world import ranks_here
from shardyard.hardware import usable_cores
from shardyard.objectives.registry import objective_spec
from shardyard.optim.schedules import learning_rate_factor
from shardyard.planning.plan import RunPlan, make_plan
from shardyard.planning.plan_text import as_dict, resolved_text
from shardyard.planning.readers import readers_here
from shardyard.recipe.schema import Recipe
from shardyard.recipe.shorten import shortened
from shardyard.tracking.metrics.record import StepRecord
from shardyard.tracking.run.events import Length, write_event
from shardyard.tracking.run.plan_file import keep_plan

# The first steps allocate memory and choose kernels, so they are not timed.
UNTIMED_STEPS = 2
LEAST_TIMED_STEPS = 3
MOST_TIMED_STEPS = 20
TIMED_SECONDS = 5.0
# Share of the budget for checkpoints, and for steps that take longer than the timed ones.
RESERVE = 0.05


@dataclass(frozen=True)
class Pace:
    """Seconds of a step, and of an evaluation with its samples."""

    step_seconds: float
    evaluation_seconds: float


def fix_steps(job: Job, mesh: Mesh) -> Job:
    """The job with the number of steps that fit its time budget, saved in the run folder; all ranks call this.

    Without `train.minutes`, or if the budget has already been converted to steps, the job is returned unchanged.
    """
    minutes = job.recipe.train.minutes
    if minutes is None:
        return job
    most = job.plan.steps
    if most <= UNTIMED_STEPS + LEAST_TIMED_STEPS:
        steps, why = most, f"{most} steps are too few to measure a budget of {minutes:g} minutes"
    else:
        pace = measure(job, mesh)
        # Freed before the engine for training is built.
        gc.collect()
        if mesh.device.type == "cuda":
            torch.cuda.empty_cache()
        steps = steps_within(60 * minutes * (1 - RESERVE), pace, most, lambda count: _evaluations(job, count))
        steps, pace = mesh.from_first((steps, pace))
        held = "hold all" if steps == most else "hold"
        why = f"{minutes:g} minutes {held} {steps} of {most} steps, at {pace.step_seconds:.3g} s each"
    recipe = shortened(job.recipe, steps, of=most)
    plan = make_plan(recipe, job.plan.architecture, job.plan.world)
    plan.reasons["steps"] = why
    if mesh.is_first:
        _keep(job, recipe, plan, why)
    return replace(job, recipe=recipe, plan=plan)


def steps_within(seconds: float, pace: Pace, most: int, evaluations: Callable[[int], int]) -> int:
    """The most steps, at least one, that fit `seconds` with their evaluations."""
    steps = max(1, min(most, math.floor(seconds / pace.step_seconds)))
    while steps > 1:
        over = steps * pace.step_seconds + evaluations(steps) * pace.evaluation_seconds - seconds
        if over <= 0:
            break
        steps = max(1, steps - math.ceil(over / pace.step_seconds))
    return steps


def _evaluations(job: Job, steps: int) -> int:
    plan = make_plan(shortened(job.recipe, steps, of=job.plan.steps), job.plan.architecture, job.plan.world)
    return math.ceil(steps / plan.evaluate_every)


def measure(job: Job, mesh: Mesh) -> Pace:
    """Time some steps and an evaluation on a temporary engine; all ranks call this."""
    recipe, plan = job.recipe, job.plan
    components = make_components(recipe, data_group=mesh.data.group)
    engine = start_engine(recipe, plan, components.config, mesh)
    shard = partial(start_frozen, plan) if recipe.zero.stage == 3 else None
    components = with_frozen(recipe, components, mesh.device, engine.module, shard=shard)
    objective = on_shared_rows(components.objective, engine.module, recipe, mesh)
    loader = TrainLoader(
        components.format_inputs,
        objective=recipe.objective,
        global_batch=recipe.train.global_batch,
        micro_batch=plan.micro_batch,
        streams=plan.streams,
        seed=recipe.train.seed,
        dp_rank=mesh.data.index,
        dp_size=mesh.data.size,
        readers=readers_here(plan.readers, recipe, cores=usable_cores(), ranks=ranks_here()),
        pin=mesh.device if mesh.device.type == "cuda" else None,
    )
    LearningRate(engine).set(learning_rate_factor(recipe.schedule, plan.steps)(0))
    hooks: list[Hook] = [
        EvaluateHook(
            engine,
            objective,
            shared_held_out(recipe, components, job.folder, mesh),
            mesh,
            micro_batch=plan.micro_batch,
            events=NullEventLog(),
        )
    ]
    if recipe.sample.prompts:
        chat = objective_spec(recipe.objective).chat
        around = partial(whole_rows, objective)
        hooks.append(
            SampleHook(engine, components.tokenizer, recipe.sample, mesh, NullEventLog(), chat=chat, around=around)
        )
    try:
        times = _timed(lambda: train_step(engine, objective, next(loader), mesh), mesh)
        started = time.monotonic()
        for hook in hooks:
            hook.on_step(StepRecord(0, {}))
        return Pace(median(times), time.monotonic() - started)
    finally:
        loader.close()
        engine.destroy()


def _timed(step: Callable[[], object], mesh: Mesh) -> list[float]:
    """Seconds of each step after the first few; all ranks stop after the same step."""
    times: list[float] = []
    for number in range(UNTIMED_STEPS + MOST_TIMED_STEPS):
        started = time.monotonic()
        step()
        if number >= UNTIMED_STEPS:
            times.append(time.monotonic() - started)
        enough = len(times) >= LEAST_TIMED_STEPS and sum(times) >= TIMED_SECONDS
        if mesh.from_first(enough):
            break
    return times


def _keep(job: Job, recipe: Recipe, plan: RunPlan, why: str) -> None:
    keep_plan(job.folder, resolved_text(recipe, plan), as_dict(plan))
    write_event(job.folder.events, Length(steps=plan.steps, text=why))
