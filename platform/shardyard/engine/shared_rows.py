"""Held-out rows of a run: made by rank 0 alone, which may read much of the data, and read by all others from a file."""

from __future__ import annotations

import traceback
from concurrent.futures import Future, ThreadPoolExecutor, wait

from shardyard.data.stream.held_out import HeldOut
from shardyard.engine.components import Components, held_out
from shardyard.engine.mesh import Mesh
from shardyard.errors import DataError, ShardyardError, UnavailableError
from shardyard.recipe.schema import Recipe
from shardyard.tracking.run.folder import RunFolder

# Ranks tell each other this often that rank 0 is still reading: a collective must not wait for longer than its limit.
REPORT_SECONDS = 5.0


def shared_held_out(recipe: Recipe, components: Components, folder: RunFolder, mesh: Mesh) -> HeldOut:
    """The recipe's held-out rows, from the run folder if they were made before; all ranks call this.

    Raises:
        DataError: (on every rank) nothing is held out, or a source cannot be read.
    """
    if mesh.world.size == 1:
        return held_out(recipe, components, file=folder.held_out)
    own: HeldOut | None = None
    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(held_out, recipe, components, file=folder.held_out) if mesh.is_first else None
        while (state := mesh.from_first(_state(made))) == "":
            pass
        own = made.result() if made is not None else None
    if own is not None:
        return own
    kind, told = state
    if kind == "made":
        return held_out(recipe, components, file=folder.held_out)
    raise (UnavailableError if kind == "unavailable" else DataError)(told)


def _state(made: Future[HeldOut] | None) -> tuple[str, str] | str:
    """What rank 0 tells the others: an empty text while it works, else what became of it."""
    if made is None:
        return ""
    wait([made], REPORT_SECONDS)
    if not made.done():
        return ""
    error = made.exception()
    if error is None:
        return "made", ""
    if isinstance(error, UnavailableError):
        return "unavailable", str(error)
    told = str(error) if isinstance(error, ShardyardError) else "".join(traceback.format_exception_only(error)).strip()
    return "failed", told
