"""Garbage collection at fixed steps, so that the ranks of a run pause together, and not one after the other."""

from __future__ import annotations

import gc

# Some milliseconds each, because what exists before the first step is never looked at again.
EVERY_STEPS = 50
# Objects beyond which a rank does not wait for its step: some code leaves far more cycles behind than training does.
MOST_OBJECTS = 500_000


class GarbageCollection:
    """Context in which Python collects garbage only where `after` says so.

    Python otherwise collects whenever enough objects were created, on each rank at another moment: all other ranks wait
    for it in the next collective, and a full collection walks through all modules and the model.

    Args:
        steps: of the run. One that ends before the first collection is spared the full one at the start.
    """

    def __init__(self, steps: int) -> None:
        self._long = steps >= EVERY_STEPS

    def __enter__(self) -> GarbageCollection:
        self._enabled = gc.isenabled()
        # Frozen objects are thawed together: where some were frozen before, as imports are, thawing is not ours.
        self._thaws = self._long and gc.get_freeze_count() == 0
        gc.disable()
        if self._long:
            gc.collect()
            gc.freeze()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thaws:
            gc.unfreeze()
        if self._enabled:
            gc.enable()

    def after(self, step: int) -> None:
        """Collect if it is time, while the device still works on the step."""
        if step % EVERY_STEPS == 0 or gc.get_count()[0] > MOST_OBJECTS:
            gc.collect()
