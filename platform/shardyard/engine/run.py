"""A whole run on one rank: assemble, train, export."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import distributed

from shardyard import freed_memory
from shardyard.data.stream.left_out import added
from shardyard.data.stream.loader import LoaderStats
from shardyard.engine.assemble import assemble
from shardyard.engine.budget import fix_steps
from shardyard.engine.checkpoint.files import free_bytes, is_full, make_room
from shardyard.engine.checkpoint.weights import live_weights
from shardyard.engine.hooks.base import Hook
from shardyard.engine.hooks.evaluate import EvaluateHook
from shardyard.engine.hooks.recovery import RecoveryHook
from shardyard.engine.job import Job as Job
from shardyard.engine.loop import Outcome, train
from shardyard.engine.memory.measured import Watch, measured
from shardyard.engine.mesh import Mesh, make_mesh
from shardyard.engine.session import Session
from shardyard.engine.world import Rank
from shardyard.errors import CheckpointError, HardwareError, ShardyardError
from shardyard.hardware import bf16_units, read_cpuinfo
from shardyard.models.build import module_skeleton
from shardyard.models.export.card import TrainedRun, model_card
from shardyard.models.export.export import export_model
from shardyard.models.weight_source import size_bytes
from shardyard.recipe.isolation import leaves_gaps
from shardyard.recipe.precision import precision_of
from shardyard.tracking.metrics.record import StepRecord, evaluation_of
from shardyard.tracking.run.events import DataRead, Finished, Notice
from shardyard.tracking.run.folder import read_metrics, typed
from shardyard.tracking.watch.beat import BEAT
from shardyard.units import format_bytes, parse_bytes

OnStep = Callable[[int, dict[str, float]], object]


class CallHook(Hook):
    """Reports each step to the caller."""

    name = "call"
    reads_metrics = False
    may_lag = True

    def __init__(self, on_step: OnStep) -> None:
        super().__init__()
        self._on_step = on_step

    def on_step(self, record: StepRecord) -> None:
        """Call the caller's function, before evaluations and checkpoints."""
        self._on_step(record.step, record.metrics)


def run_rank(job: Job, rank: Rank, on_step: OnStep | None = None) -> Outcome:
    """Run a job as one rank; `torch.distributed` must be initialised.

    Args:
        on_step: called after each step, before evaluations and checkpoints.

    Raises:
        ShardyardError: a part of the run failed; raised on the rank where it failed.
    """
    check_precision(precision_of(job.recipe), rank.device)
    torch.set_num_threads(job.recipe.train.threads or job.recipe.cluster.cpus_per_worker or 1)
    if rank.device.type == "cpu":
        freed_memory.keep()
    mesh = make_mesh(job.plan.mesh, rank)
    job = fix_steps(job, mesh)
    with measured(job, mesh) as watch:
        return _run(job, mesh, on_step, watch)


def _run(job: Job, mesh: Mesh, on_step: OnStep | None, watch: Watch) -> Outcome:
    session = assemble(job.recipe, job.plan, job.folder, mesh, trust=job.trust)
    session.hooks[:0] = watch(session.engine, session.frozen)
    if on_step is not None:
        session.hooks.insert(0, CallHook(on_step))
    if job.restart is not None:
        session.hooks.insert(0, RecoveryHook(job.restart, lambda: session.restored, session.event_log))
    rank, ended = mesh.here, "failed"
    try:
        if rank.device.type == "cpu" and precision_of(job.recipe) == "bf16" and bf16_units(read_cpuinfo()) == "":
            session.event_log.event(Notice(text=slow_bf16(bf16_factor())))
        outcome = train(session, until=job.until)
        with BEAT.part("end"):
            _log_data_counts(session)
            if outcome == "finished":
                _finish(session)
            # No rank exits while another still communicates with it.
            distributed.barrier()
        ended = outcome
        return outcome
    finally:
        session.close(ended)


def bf16_factor() -> float:
    """The time of a matrix product in bf16 relative to fp32 on this CPU, measured within some milliseconds."""
    seconds = {dtype: min(_product_seconds(dtype) for _ in range(3)) for dtype in (torch.float32, torch.bfloat16)}
    return seconds[torch.bfloat16] / seconds[torch.float32]


def _product_seconds(dtype: torch.dtype, width: int = 192) -> float:
    matrix = torch.ones(width, width, dtype=dtype)
    started = time.perf_counter()
    matrix @ matrix
    return time.perf_counter() - started


def slow_bf16(factor: float) -> str:
    """The notice about bf16 on a CPU without bf16 units."""
    return (
        f"train.precision is bf16, for which this CPU has no units: a matrix product takes {factor:.0f} times as long "
        "as in fp32. Launch with `-s train.precision=fp32`, or remove train.precision."
    )


def _log_data_counts(session: Session) -> None:
    """Log the data-reading counters of all ranks, so that nothing is dropped silently."""
    stats = session.mesh.data.gather(session.loader.stats())
    skipped = sum(source["skipped"] for one in stats for source in one["sources"])
    retries, cut = (sum(one[name] for one in stats) for name in ("retries", "cut"))
    left_out = added([source["left_out"] for one in stats for source in one["sources"]])
    session.event_log.event(
        DataRead(
            skipped=skipped,
            retries=retries,
            cut=cut,
            filtered=left_out["filtered"],
            unusable=left_out["unusable"],
            without_target=left_out["without_target"],
            repaired=left_out["repaired"],
            empty_streams=left_out["empty_streams"],
            named=tuple(left_out["named"]),
            full=_fullness(session, stats) if leaves_gaps(session.recipe) else None,
            ranks=stats,
        )
    )


def _fullness(session: Session, stats: Sequence[LoaderStats]) -> float:
    """Share of the positions of packed rows that hold tokens."""
    rows, tokens = (sum(source[name] for one in stats for source in one["sources"]) for name in ("rows", "tokens"))
    length = session.recipe.data.sequence_length or 1
    return tokens / max(1, rows * length)


def check_precision(precision: str, device: torch.device) -> None:
    """Reject a precision that the device does not support, before DeepSpeed fails.

    Raises:
        HardwareError: the device does not support it.
    """
    if device.type == "cuda":
        if precision == "bf16" and torch.cuda.get_device_capability(device)[0] < 8:
            raise HardwareError(f"{torch.cuda.get_device_name(device)} has no bf16; use train.precision fp16 or fp32")
    elif precision == "fp16" and not torch.ops.mkldnn._is_mkldnn_fp16_supported():
        raise HardwareError("this CPU cannot compute in fp16; use train.precision bf16 or fp32")


def _finish(session: Session) -> None:
    """Save the last checkpoint and write final/, each even if the other fails.

    Raises:
        CheckpointError: the last checkpoint could not be written.
        ShardyardError: final/ could not be written.
    """
    unsaved: CheckpointError | None = None
    try:
        session.finish()
    except CheckpointError as error:
        unsaved = error
    problem = _export(session)
    where = session.folder.path
    again = typed(where)
    if unsaved is not None and problem is None:
        raise CheckpointError(f"the trained model is in {where / 'final'}, but {unsaved}") from unsaved
    if problem is not None:
        saved = f"The last checkpoint is complete: fix the cause and run `shardyard export {again}`, or "
        saved += f"`shardyard export {again} FOLDER` to write it elsewhere."
        raise ShardyardError(f"{problem}. {saved}" if unsaved is None else f"{problem}. And {unsaved}")


def _export(session: Session) -> str | None:
    """Write final/, all ranks together; returns the reason of a failure on all ranks, so that none waits for others."""
    destination = session.folder.path / "final"
    weights = live_weights(session.engine, session.mesh)
    card = _card(session) if session.mesh.is_first else ""
    try:
        path = _with_room(
            session,
            size_bytes(weights),
            lambda: export_model(
                destination,
                config=session.config,
                weights=weights,
                tokenizer=session.tokenizer,
                processor=session.processor,
                card=card,
                objective=session.recipe.objective,
                adapter=session.recipe.model.adapter,
                module=module_skeleton(session.recipe.model, session.config),
                generates=session.generates,
                shard_bytes=parse_bytes(session.recipe.checkpoint.shard_size),
                ranks=session.mesh.world,
            ),
        )
    except (OSError, ShardyardError) as error:
        return f"the trained model could not be written to {destination}: {error}"
    session.event_log.event(Finished(step=session.engine.global_steps, path=path.name))
    return None


def _card(session: Session) -> str:
    evaluations = [found for line in read_metrics(session.folder.metrics) if (found := evaluation_of(line))]
    info = session.folder.info()
    base = info.starting.get("model.pretrained", {}).get("name", session.recipe.model.pretrained)
    run = TrainedRun(info.id, session.engine.global_steps, info.provenance, base)
    errors = next((hook.errors for hook in session.hooks if isinstance(hook, EvaluateHook)), {})
    return model_card(session.recipe, session.plan, run, evaluations[-1] if evaluations else {}, errors)


def _with_room(session: Session, size_bytes: int, write: Callable[[], Path]) -> Path:
    """Write the model; if the disk is full, older checkpoints are removed, because the model is more important.

    Raises:
        OSError, ShardyardError: on all ranks: the model cannot be written; if the disk is full, the text states the
            required space.
    """
    mesh = session.mesh
    while True:
        try:
            return write()
        except OSError as error:
            if not is_full(error):
                raise
            removed = mesh.from_first(make_room(session.folder.checkpoints, size_bytes) if mesh.is_first else [])
            if not removed:
                free = format_bytes(free_bytes(session.folder.path))
                raise ShardyardError(f"{error}: it needs {format_bytes(size_bytes)} and {free} are free") from error
            text = f"the disk is full: {', '.join(path.name for path in removed)} made room for the trained model"
            session.event_log.event(Notice(text=text, warns=True))
