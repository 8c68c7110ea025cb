"""Assembles one run on one rank. The only place that reads the whole recipe and passes on its sections."""

from __future__ import annotations

import socket
from dataclasses import replace
from functools import partial

from shardyard.data.mixture.batches import stage_batches
from shardyard.data.stream.loader import TrainLoader
from shardyard.engine.checkpoint.checkpoint import Checkpointer
from shardyard.engine.checkpoint.snapshot import lacks_room
from shardyard.engine.components import Components, make_components, with_frozen
from shardyard.engine.deepspeed.engine import LearningRate, lr_of_b, start_engine
from shardyard.engine.deepspeed.sharding import start_frozen
from shardyard.engine.hooks.base import EventLog, NullEventLog
from shardyard.engine.hooks.early_stopping import EarlyStoppingHook
from shardyard.engine.hooks.evaluate import EvaluateHook
from shardyard.engine.hooks.mixture import MixtureHook
from shardyard.engine.hooks.registry import HookInputs, outside_hooks
from shardyard.engine.hooks.sampling import SampleHook
from shardyard.engine.mesh import Mesh
from shardyard.engine.parallel.rows import on_shared_rows, whole_rows
from shardyard.engine.prediction import predicted
from shardyard.engine.session import Session
from shardyard.engine.shared_rows import shared_held_out
from shardyard.engine.world import ranks_here
from shardyard.hardware import usable_cores
from shardyard.models import generation
from shardyard.objectives.registry import objective_spec
from shardyard.optim.schedules import learning_rate_factor
from shardyard.planning.plan import RunPlan
from shardyard.planning.readers import readers_here
from shardyard.planning.saving import copy_bytes
from shardyard.recipe.mixture.weights import is_planned
from shardyard.recipe.precision import precision_of
from shardyard.recipe.schema import Recipe
from shardyard.tracking.metrics.machine import MachineWatch
from shardyard.tracking.metrics.meters import Throughput, device_name, peak_flops
from shardyard.tracking.metrics.tracker import Tracker
from shardyard.tracking.run.events import Notice
from shardyard.tracking.run.folder import RunFolder
from shardyard.tracking.trackers.base import TrackerInputs
from shardyard.tracking.trackers.registry import mirrors_of
from shardyard.tracking.wandb.mirror import WandbMirror


def assemble(recipe: Recipe, plan: RunPlan, folder: RunFolder, mesh: Mesh, *, trust: bool = False) -> Session:
    """All parts that the training loop needs.

    Args:
        trust: load checkpoint files that may execute code.

    Raises:
        DataError, ModelError: a part of the recipe cannot be built here.
    """
    tracker = _tracker(recipe, folder) if mesh.is_first else None
    event_log: EventLog = tracker or NullEventLog()
    components = make_components(recipe, data_group=mesh.data.group)

    def report(text: str) -> None:
        event_log.event(Notice(text=text))

    engine = start_engine(recipe, plan, components.config, mesh, report)
    for remark in components.chat.remarks if components.chat is not None else ():
        report(remark)
    tokenizer = components.exported_tokenizer(recipe)
    generates = components.generation(recipe, tokenizer)
    generation.adopt(engine.module, generates)
    shard = partial(start_frozen, plan) if recipe.zero.stage == 3 else None
    components = with_frozen(recipe, components, mesh.device, engine.module, shard=shard, report=report)
    components = replace(components, objective=on_shared_rows(components.objective, engine.module, recipe, mesh))
    loader = TrainLoader(
        components.format_inputs,
        objective=recipe.objective,
        global_batch=recipe.train.global_batch,
        micro_batch=plan.micro_batch,
        streams=plan.streams,
        seed=recipe.train.seed,
        dp_rank=mesh.data.index,
        dp_size=mesh.data.size,
        stages=stage_batches(plan.stages),
        readers=readers_here(plan.readers, recipe, cores=usable_cores(), ranks=ranks_here()),
        pin=mesh.device if mesh.device.type == "cuda" else None,
    )
    metadata = {"zero_stage": recipe.zero.stage, "precision": precision_of(recipe)}
    session = Session(
        recipe=recipe,
        plan=plan,
        mesh=mesh,
        folder=folder,
        tokenizer=tokenizer,
        config=components.config,
        engine=engine,
        objective=components.objective,
        frozen=components.frozen,
        loader=loader,
        factor=learning_rate_factor(recipe.schedule, plan.steps),
        learning_rate=LearningRate(engine),
        checkpointer=Checkpointer(
            engine,
            folder.checkpoints,
            mesh,
            keep=recipe.checkpoint.keep,
            keep_damaged=recipe.checkpoint.keep_damaged,
            metadata=metadata,
            background=_writes_beside(recipe, plan, mesh, event_log),
            may_write=folder.check_held,
            faster_b=lr_of_b(recipe) is not None,
            trust=trust,
        ),
        event_log=event_log,
        tracker=tracker,
        meter=_meter(recipe, plan),
        machine=_machine(folder, mesh),
        processor=components.processor,
        generates=generates,
        mixture=_mixture(recipe, plan, mesh, loader, event_log),
    )
    for note in loader.notes:
        event_log.event(Notice(text=note))
    _add_hooks(session, components)
    if mesh.is_first:
        data = loader.fingerprint()
        folder.update(
            predicted=predicted(recipe, plan, device_name(), folder.info().placement),
            data={
                "tokenizer": data["tokenizer"],
                "streams": data["streams"],
                "seed": data["seed"],
                "sources": data["sources"],
            },
        )
    return session


def _writes_beside(recipe: Recipe, plan: RunPlan, mesh: Mesh, events: EventLog) -> bool:
    """Whether checkpoints are written beside training; not where a host lacks the memory for it now, which only its
    ranks know. A warning says so: a run that goes on after a failure must not end of it."""
    if not plan.background:
        return False
    why = lacks_room(copy_bytes(recipe, plan.memory) * ranks_here())
    found = sorted({text for text in mesh.world.gather(why) if text})
    if not found:
        return True
    asked = "checkpoint.background is true, but " if recipe.checkpoint.background else ""
    text = (
        f"{asked}{found[0]}: checkpoints are written between two steps, which wait for the disk. Free memory there, or "
        "set checkpoint.background to false"
    )
    events.event(Notice(text=text, warns=True))
    return False


def _tracker(recipe: Recipe, folder: RunFolder) -> Tracker:
    settings = recipe.tracking.wandb
    mirror = WandbMirror(
        settings,
        run_id=folder.id,
        name=folder.id,
        tags=recipe.tracking.tags,
        config=recipe.model_dump(),
        folder=folder.path,
    )
    return Tracker(folder, mirror, *mirrors_of(TrackerInputs(recipe, folder.id, folder.path)))


def _meter(recipe: Recipe, plan: RunPlan) -> Throughput:
    peak = peak_flops(device_name(), precision_of(recipe))
    # Tokens are counted for the global batch, and all ranks compute on them, along whichever axis.
    return Throughput(flops_per_token=plan.flops_per_token, peak_flops=None if peak is None else peak * plan.mesh.world)


def _machine(folder: RunFolder, mesh: Mesh) -> MachineWatch | None:
    """One watch per node."""
    if mesh.here.local_rank:
        return None
    where, gpu = folder.path / "logs" / "machines", mesh.device.type == "cuda"
    return MachineWatch(where, socket.gethostname(), collects=mesh.is_first, gpu=gpu)


def _mixture(recipe: Recipe, plan: RunPlan, mesh: Mesh, loader: TrainLoader, events: EventLog) -> MixtureHook | None:
    """Counts by source, unless there is one that is read on and on."""
    if len(recipe.data.train) == 1 and not is_planned(recipe.data):
        return None
    return MixtureHook(loader.source_names, plan, mesh, events, fills=loader.fills)


def _early_stopping(recipe: Recipe, events: EventLog, every: int) -> EarlyStoppingHook | None:
    settings = recipe.evaluate.early_stopping
    if settings is None:
        return None
    metric = settings.metric.rpartition("/")[2]
    larger_is_better = objective_spec(recipe.objective).metrics.get(metric, False)
    return EarlyStoppingHook(settings, events, every=every, larger_is_better=larger_is_better)


def _add_hooks(session: Session, components: Components) -> None:
    """Add hooks in the order in which they run after a step: measure, record, react, save."""
    recipe, every, events = session.recipe, session.plan.evaluate_every, session.event_log
    held = shared_held_out(recipe, components, session.folder, session.mesh)
    if held.num_left_out or held.filtered or session.loader.notes:
        events.event(Notice(text=f"evaluation: {held.describe()}"))
    evaluate = EvaluateHook(
        session.engine,
        components.objective,
        held,
        session.mesh,
        micro_batch=session.plan.micro_batch,
        events=events,
        every=every,
    )
    stopping = _early_stopping(recipe, events, every)
    sample = None
    if recipe.sample.prompts:
        chat = objective_spec(recipe.objective).chat
        sample = SampleHook(
            session.engine,
            session.tokenizer,
            recipe.sample,
            session.mesh,
            events,
            every=every,
            chat=chat,
            around=partial(whole_rows, session.objective),
        )
    acting = [hook for hook in (session.mixture, stopping, sample, session.checkpoint) if hook is not None]
    ours = [evaluate, session.recorder, *acting]
    inputs = HookInputs(recipe, session.engine.module, session.mesh, events)
    outside = outside_hooks(inputs, [hook.name for hook in ours])
    session.hooks += [evaluate, *outside, session.recorder, *acting]
