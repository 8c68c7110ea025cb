"""A divergence: weights that are not finite, the checkpoints that are still good, and the command that continues.

The loss of step n is that of the weights after step n-1. So finite weights may be spoiled as well, and only the loss of
the next step shows it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, distributed, nn

from shardyard.engine.checkpoint import files
from shardyard.errors import CheckpointError
from shardyard.tracking.metrics.record import TRAIN_LOSS
from shardyard.tracking.run.folder import RunFolder, read_metrics, typed

# Factor of the best loss so far (at least 1): a larger loss is a divergence, not a spike from which training recovers.
LEAP = 10.0
# Above LARGEST_SENSIBLE_LR, a tenth of the learning rate is still too high; SAFE_LR suits most models.
LARGEST_SENSIBLE_LR = 1.0
SAFE_LR = 3e-4


def way_back(folder: RunFolder, learning_rate: float, step: int, what: str) -> str:
    """Mark the checkpoints spoiled before `step`, and return advice for the user. Only rank 0 calls this.

    Args:
        learning_rate: of the recipe.
        step: the step at which the divergence was noticed.
        what: the observation, such as `the loss is nan at step 12`.
    """
    good = _newest_good(folder.checkpoints, _losses(folder), step, what)
    lower = learning_rate / 10 if learning_rate <= LARGEST_SENSIBLE_LR else SAFE_LR
    command = f"shardyard resume {typed(folder.path)} --step {good} -s optimizer.lr={lower:g}"
    where = (
        f"The newest checkpoint before it is that of step {good}: `{command}` continues from it."
        if good
        else f"There is no checkpoint before it: `{command}` starts from the beginning."
    )
    return f"{what}. Lower optimizer.lr, lengthen schedule.warmup or clip gradients more. {where}"


def is_spoiled(losses: Mapping[int, float], step: int, exploded: int) -> bool:
    """Whether the weights after `step` were part of a divergence that was noticed at step `exploded`."""
    after = min((other for other in losses if step < other < exploded), default=None)
    if after is None:
        # The diverged loss is the first of these weights, unless a step in between was not recorded.
        return exploded <= step + 1
    best = min((abs(losses[other]) for other in losses if other <= step and math.isfinite(losses[other])), default=0.0)
    return not math.isfinite(losses[after]) or abs(losses[after]) > LEAP * max(1.0, best)


def newest_before(folder: RunFolder, first: int, step: int, what: str) -> int:
    """The step of the newest good checkpoint before step `first`, 0 if there is none; later ones are marked, and those
    that were part of a divergence before `step`. Only rank 0 calls this.

    Args:
        what: the observation, such as `the loss is nan at step 12`.
    """
    losses, passed = _losses(folder), []
    for path in reversed(files.committed_checkpoints(folder.checkpoints)):
        at = files.step_of(path)
        # Without a loss in between, the batch of the step is the cause, not the weights.
        spoiled = any(at < other < step for other in losses) and is_spoiled(losses, at, step)
        if at >= first or spoiled:
            files.mark(path, good=False, why=f"the run went back to before it ({what})")
            passed.append(path)
        elif _is_good(path):
            return at
    # A run with checkpoints that are all bad does not start from the beginning by itself.
    for path in passed:
        files.put_by(path)
    return 0


def _losses(folder: RunFolder) -> dict[int, float]:
    try:
        lines = read_metrics(folder.metrics)
    except OSError:
        return {}
    return {int(line["step"]): float(line[TRAIN_LOSS]) for line in lines if TRAIN_LOSS in line}


def _newest_good(checkpoints: Path, losses: Mapping[int, float], step: int, what: str) -> int:
    """The step of the newest good checkpoint; 0 if there is none."""
    for folder in reversed(files.committed_checkpoints(checkpoints)):
        at = files.step_of(folder)
        if at >= step or is_spoiled(losses, at, step):
            files.mark(folder, good=False, why=f"it was saved during a divergence ({what})")
        elif _is_good(folder):
            return at
    return 0


def _is_good(folder: Path) -> bool:
    try:
        return files.bad_because(folder) is None
    except CheckpointError:
        return False


def _own_part(parameter: Any) -> Any:
    """A parameter, or under ZeRO-3 this rank's part of it without what fills the last part up: any memory."""
    if not hasattr(parameter, "ds_tensor"):
        return parameter
    part = parameter.ds_tensor.flatten()
    first = distributed.get_rank(parameter.ds_process_group) * part.numel()
    return part[: max(0, parameter.ds_numel - first)]


def own_parts(model: nn.Module) -> dict[str, Tensor]:
    """The parameters of this rank by name; under ZeRO-3 it holds a part of each."""
    parts = {name: _own_part(parameter) for name, parameter in model.named_parameters()}
    return {name: part.detach() for name, part in parts.items() if part.is_floating_point() and part.numel()}


def not_finite(parts: Mapping[str, Tensor]) -> list[str]:
    """Names of those that have a value that is not finite."""
    # A single synchronisation for all, because each one waits for the device.
    if not parts or bool(torch.stack([_extreme(part) for part in parts.values()]).isfinite().all()):
        return []
    return [name for name, part in parts.items() if not bool(part.isfinite().all())]


def _extreme(part: Any) -> Tensor:
    """A number that is not finite if a value is not, in a fiftieth of the time of `isfinite` on a CPU; a sum that
    overflows is one without a reason."""
    if part.dtype.itemsize != 2:
        return cast("Tensor", part.sum(dtype=torch.float32))
    low, high = part.aminmax()
    return cast("Tensor", high.float() - low.float())
