"""The rows of a micro-batch, and how many of its tokens have their logits at the same time."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from shardyard.errors import Problem, RecipeError
from shardyard.objectives.registry import objective_spec
from shardyard.planning.architecture import Architecture
from shardyard.planning.memory import estimate_memory
from shardyard.planning.recomputation import Recomputed, cheapest_first, recomputation, with_recomputed
from shardyard.recipe.mesh import MeshShape
from shardyard.recipe.schema import Recipe
from shardyard.units import format_bytes

MAX_MICRO_BATCH_TOKENS = 8192
# Tokens whose logits exist at the same time where those of a micro-batch do not fit: enough rows for a GPU's products.
# Where the memory is not known, they are taken not to fit above this size.
LOGITS_CHUNK, LARGE_LOGITS_BYTES = 1024, 2 * 1024**3


@dataclass(frozen=True)
class FittingBatch:
    """A micro-batch that fits, if any does. logits_chunk: see `model.logits_chunk`. recomputed: see
    `model.activation_checkpointing`."""

    micro_batch: int
    logits_chunk: int
    fits: bool
    reasons: dict[str, str]
    recomputed: Recomputed = field(default_factory=Recomputed)


def fitting_batch(recipe: Recipe, architecture: Architecture, mesh: MeshShape, device: int | None) -> FittingBatch:
    """The micro-batch of a recipe, or the largest that fits; with the cheapest activation checkpointing that makes one
    fit, if the recipe does not choose it.

    Args:
        device: bytes of the device, if known.

    Raises:
        RecipeError: the rows of a rank cannot be divided as the recipe wants.
    """
    model = recipe.model
    interval = model.activation_checkpointing_interval if model.checkpointing != "none" else 1
    first = replace(
        _with_micro_batch(recipe, architecture, mesh, device), recomputed=Recomputed(model.checkpointing, interval)
    )
    if model.activation_checkpointing is not None or first.fits or device is None:
        return first
    for tried in cheapest_first(recipe):
        found = _with_micro_batch(with_recomputed(recipe, tried), architecture, mesh, device)
        if found.fits:
            found.reasons["recomputed"] = (
                f"without it not even a micro-batch of {first.micro_batch} fits {format_bytes(device)}; "
                f"{recomputation(with_recomputed(recipe, tried), architecture)}"
            )
            return replace(found, recomputed=tried)
    return first


def _with_micro_batch(recipe: Recipe, architecture: Architecture, mesh: MeshShape, device: int | None) -> FittingBatch:
    pinned, rows = recipe.train.micro_batch, rows_per_rank(recipe, mesh)

    def tried(micro_batch: int) -> FittingBatch:
        return _with_chunk(recipe, architecture, mesh, device, micro_batch)

    if pinned is not None:
        if rows % pinned:
            raise refusal("train.micro_batch", f"{pinned} does not divide the {rows} rows of each rank")
        return _because(tried(pinned), "pinned by train.micro_batch")
    if objective_spec(recipe.objective).whole_batch:
        return _because(tried(rows), f"all rows of a rank: {recipe.objective} compares every row with every other")
    limit = max(1, MAX_MICRO_BATCH_TOKENS // row_tokens(recipe, architecture))
    candidates = [m for m in range(min(rows, limit), 0, -1) if rows % m == 0]
    found = next((one for m in candidates if (one := tried(m)).fits), None)
    why = f"largest divisor of {rows} rows a rank with at most {MAX_MICRO_BATCH_TOKENS} tokens"
    if device is not None:
        have = format_bytes(device)
        why = f"{why}, and that fits {have}" if found else f"the minimum; not even one row fits {have}"
    return _because(found or tried(1), why)


def batch_on(
    recipe: Recipe, architecture: Architecture, mesh: MeshShape, device: int | None, *, gpu: bool
) -> FittingBatch:
    """`fitting_batch`, but one row where the memory of GPUs is not known: a plan does not guess what fits them.

    Raises:
        RecipeError: the rows of a rank cannot be divided as the recipe wants.
    """
    given = recipe.train.micro_batch is not None or objective_spec(recipe.objective).whole_batch
    if given or device is not None or not gpu:
        return fitting_batch(recipe, architecture, mesh, device)
    train = recipe.train.model_copy(update={"micro_batch": 1})
    found = fitting_batch(recipe.model_copy(update={"train": train}), architecture, mesh, device)
    return _because(found, "one row, unchecked: the memory of the GPUs is not known here, and a launch asks them")


def _because(found: FittingBatch, why: str) -> FittingBatch:
    found.reasons["micro_batch"] = why
    return found


def _with_chunk(
    recipe: Recipe, architecture: Architecture, mesh: MeshShape, device: int | None, micro_batch: int
) -> FittingBatch:
    model, given = recipe.model, recipe.model.logits_chunk

    def needed(chunk: int) -> int:
        return estimate_memory(
            with_logits_chunk(recipe, chunk), architecture, mesh, micro_batch=micro_batch
        ).device_bytes

    def fits(chunk: int) -> bool:
        return device is None or needed(chunk) <= device

    if given is not None:
        return FittingBatch(micro_batch, given, fits(given), {"logits_chunk": "given by model.logits_chunk"})
    possible = objective_spec(recipe.objective).vocabulary and model.module is None
    logits = estimate_memory(recipe, architecture, mesh, micro_batch=micro_batch).logits_bytes
    too_large = logits > LARGE_LOGITS_BYTES if device is None else not fits(0)
    size = f"the logits of a micro-batch and their gradients take {format_bytes(logits)}"
    if not possible:
        return FittingBatch(micro_batch, 0, fits(0), {"logits_chunk": f"{size}, and are computed together"})
    if not too_large or needed(LOGITS_CHUNK) >= needed(0):
        return FittingBatch(micro_batch, 0, fits(0), {"logits_chunk": f"{size}, which leaves room for the rest"})
    why = "which does not fit" if device is not None else "and the device memory is not known"
    return FittingBatch(micro_batch, LOGITS_CHUNK, fits(LOGITS_CHUNK), {"logits_chunk": f"{size}, {why}"})


def with_logits_chunk(recipe: Recipe, chunk: int) -> Recipe:
    """The recipe with `model.logits_chunk` set."""
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"logits_chunk": chunk})})


def row_tokens(recipe: Recipe, architecture: Architecture) -> int:
    """Number of positions of a row in the model."""
    if architecture.tokens_per_row is not None:
        return architecture.tokens_per_row
    assert recipe.data.sequence_length is not None, "checked with the recipe"
    return recipe.data.sequence_length * objective_spec(recipe.objective).sequences


def refusal(path: str, message: str) -> RecipeError:
    """The error that a plan raises about a field."""
    return RecipeError("plan", [Problem("", path, message)])


def rows_per_rank(recipe: Recipe, mesh: MeshShape) -> int:
    """Rows of a global batch that a data-parallel rank reads; raises RecipeError if there is no whole number."""
    rows, rest = divmod(recipe.train.global_batch, mesh.data)
    if rest:
        raise refusal("train.global_batch", f"{recipe.train.global_batch} rows cannot be shared by {mesh.data} ranks")
    return rows
