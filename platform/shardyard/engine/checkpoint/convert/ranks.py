"""A checkpoint for another number of ranks or ZeRO stage: processes of this machine resume it and save it."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import traceback
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed, multiprocessing

from shardyard.engine.checkpoint.checkpoint import Checkpointer
from shardyard.engine.checkpoint.convert.whole import Whole, same_bits
from shardyard.engine.components import make_components
from shardyard.engine.deepspeed.engine import lr_of_b, start_engine
from shardyard.engine.mesh import make_mesh
from shardyard.engine.world import Rank
from shardyard.errors import CheckpointError
from shardyard.planning.plan import RunPlan
from shardyard.recipe.precision import precision_of
from shardyard.recipe.schema import Recipe

_PATIENCE = timedelta(minutes=30)


def write_for_ranks(checkpoint: Path, recipe: Recipe, plan: RunPlan, folder: Path, *, trust: bool = False) -> Path:
    """Write the checkpoint for the ranks and stage of a plan; returns its folder in `folder`.

    Each process holds its share of the states, and all of them together one copy, on the CPUs of this machine.

    Args:
        recipe: of the run, with the stage and number of workers of the new layout; `plan`: for so many CPU ranks.

    Raises:
        CheckpointError: a process failed; its error.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".shardyard-") as scratch:
        source = Path(scratch) / "source"
        source.mkdir()
        (source / checkpoint.name).symlink_to(checkpoint.resolve())
        context = multiprocessing.get_context("spawn")
        world = plan.world.size
        arguments = (world, scratch, recipe, plan, source, Path(scratch) / "target", trust)
        processes = [context.Process(target=_rank, args=(rank, *arguments)) for rank in range(world)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        told = [Path(scratch) / f"error-{rank}" for rank in range(world)]
        errors = [path.read_text() for path in told if path.exists()]
        codes = [process.exitcode for process in processes if process.exitcode]
        if errors or codes:
            why = errors[0] if errors else f"a process ended with code {codes[0]}, as one does that lacks memory"
            raise CheckpointError(f"{checkpoint.name} cannot be converted: {why}")
        written = Path(scratch) / "target" / checkpoint.name
        final = folder / checkpoint.name
        if final.exists():
            shutil.rmtree(final)
        written.rename(final)
    return final


def _rank(
    number: int, world: int, scratch: str, recipe: Recipe, plan: RunPlan, source: Path, target: Path, trust: bool
) -> None:
    """One process: resume and save."""
    os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": str(number), "LOCAL_WORLD_SIZE": str(world)}
    os.environ |= {"RANK": str(number), "WORLD_SIZE": str(world), "GLOO_SOCKET_IFNAME": _loopback()}
    try:
        meeting = f"file://{scratch}/store"
        distributed.init_process_group("gloo", meeting, timeout=_PATIENCE, world_size=world, rank=number)
        torch.set_num_threads(1)
        rank = Rank(rank=number, world_size=world, local_rank=number, device=torch.device("cpu"))
        mesh = make_mesh(plan.mesh, rank)
        components = make_components(recipe, data_group=mesh.data.group)
        engine = start_engine(recipe, plan, components.config, mesh, lambda _: None)
        metadata: Mapping[str, object] = {"zero_stage": recipe.zero.stage, "precision": precision_of(recipe)}
        faster_b = lr_of_b(recipe) is not None
        reader = Checkpointer(engine, source, mesh, keep=1, metadata=metadata, faster_b=faster_b, trust=trust)
        found = reader.restore(lambda _: None)
        assert found is not None, "the checkpoint is there"
        state, streams = found
        writer = Checkpointer(engine, target, mesh, keep=1, metadata=metadata, faster_b=faster_b)
        writer.save(state, streams if mesh.is_first else {})
        distributed.barrier()
    except Exception as error:  # noqa: BLE001 - told by the process that waits
        text = str(error) if isinstance(error, CheckpointError) else traceback.format_exc(limit=-1)
        (Path(scratch) / f"error-{number}").write_text(text.strip())
        os._exit(1)
    distributed.destroy_process_group()


def _loopback() -> str:
    names = [name for _, name in socket.if_nameindex()]
    return "lo" if "lo" in names else names[0]


def compare(first: Whole, second: Whole) -> None:
    """Check that two layouts hold the same.

    Raises:
        CheckpointError: they do not; names the first parameter that differs.
    """
    for kind in first.kinds:
        there = second.tensors(kind)
        for name, pieces in first.tensors(kind).items():
            other = there.get(name)
            whole = pieces.read(0, pieces.size)
            if (
                other is None
                or other.size != pieces.size
                or not same_bits(other.read(0, other.size, whole.dtype), whole)
            ):
                raise CheckpointError(f"{name} ({kind}) differs from the checkpoint; check the disk")
