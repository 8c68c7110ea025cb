"""What a run does about batches that break it: values that are not finite, and spikes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from shardyard.recipe.sections.base import Section, described

OnNan = Literal["stop", "skip", "rollback", "lower_rate"]
OnSpike = Literal["continue", "stop", "skip", "rollback", "lower_rate"]
Signal = Literal["loss", "grad_norm"]


class Anomalies(Section):
    """Batches with a loss or gradient norm that is not finite or far above the recent ones (docs/reliability)."""

    on_nan: OnNan = described(
        "stop",
        "What follows from a loss or gradient norm that is not finite. `skip` makes no update from the batch; "
        "`lower_rate` does the same and lowers the learning rate; `rollback` returns to the newest checkpoint and "
        "skips the batch when it comes again; `stop` ends the run.",
    )
    on_spike: OnSpike = described(
        "continue", "What follows from a spike: the same actions; `continue` does not look for spikes."
    )
    signals: Annotated[list[Signal], Field(min_length=1)] = described(
        ["loss", "grad_norm"], "What spikes are looked for in: the training loss, the norm of the gradient, or both."
    )
    threshold: float = described(
        6.0,
        "A value is a spike if it is this many robust standard deviations (1.4826 times the median absolute deviation) "
        "above the median of the window.",
        gt=1.0,
    )
    window: int = described(
        128,
        "Steps without an anomaly that a value is compared with; no spike is seen in the first half.",
        "steps",
        ge=8,
    )
    at_most: int = described(10, "Actions in a run; the next anomaly ends it.", "times", ge=1)
    before: int = described(
        0,
        "rollback: further batches before the one with the anomaly that are skipped as well; the checkpoint is then "
        "one from before them.",
        "batches",
        ge=0,
    )
    rate_factor: float = described(
        0.5, "lower_rate: factor of the learning rate from the next step on.", gt=0.0, lt=1.0
    )
    rate_steps: int | None = described(
        None, "lower_rate: steps after which the factor no longer counts. Default: it counts to the end.", "steps", ge=1
    )
