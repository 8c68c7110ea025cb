"""The record of a step and the names of metrics, on which all readers of run folders rely."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

TRAIN_LOSS = "train/loss"
"""Mean loss per target token of the global batch."""
TRAIN_GRAD_NORM = "train/grad_norm"
"""Norm of the gradient before clipping."""
TRAIN_LR = "train/lr"
"""Learning rate of this step."""
TRAIN_TOKENS = "train/tokens"
"""Positions of all rows since the first step of the run, padding included, as `train.tokens` counts them."""
ROW_FILL = "data/row_fill"
"""Share of the positions of the step's rows that hold tokens, 0 to 1; present only if rows may be partly empty."""
CUT_DOCUMENTS = "data/cut_documents"
"""Documents of the step that were cut: parts that begin within a document, or texts whose end did not fit."""
CUT_TOKENS = "data/cut_tokens"
"""Tokens of the step that cutting cost: predicted without what comes before the cut, or left out at the end."""
FILTERED = "data/filtered"
"""Share of rank 0's documents that data.filters removed since this process began to read, 0 to 1; only with filters."""
TOKENS_PER_SECOND = "perf/tokens_per_second"
"""Tokens of all ranks, padding not counted, per second of training, without evaluation and checkpoints."""
STEP_SECONDS = "perf/step_seconds"
"""Wall time of the step, waiting for data included."""
DATA_WAIT_SECONDS = "perf/data_wait_seconds"
"""Time the step waited for its batch."""
MFU = "perf/mfu"
"""Model FLOPs utilisation, 0 to 1; present only if the peak of the hardware is known."""
RSS_BYTES = "memory/rss_bytes"
"""Resident memory of rank 0's process."""
PEAK_ALLOCATED_BYTES = "memory/peak_allocated_bytes"
"""Largest GPU memory allocated by PyTorch on rank 0."""


def source_tokens(source: str) -> str:
    """Name of the tokens trained on from a source since the first step, in whole rows."""
    return f"data/tokens/{source}"


def source_passes(source: str) -> str:
    """Name of the passes over a source that its streams have finished, their mean."""
    return f"data/passes/{source}"


def eval_loss(dataset: str = "validation") -> str:
    """Name of the loss on a held-out set: `eval/validation/loss`."""
    return f"eval/{dataset}/loss"


def newest_eval_loss(metrics: Mapping[str, object]) -> float | None:
    """The loss on a held-out set in a record: on `validation` if present, else the first one by name."""
    names = sorted(name for name in metrics if name.startswith("eval/") and name.endswith("/loss"))
    chosen = eval_loss() if eval_loss() in names else names[0] if names else None
    value = metrics[chosen] if chosen is not None else None
    return float(value) if isinstance(value, int | float) else None


# One number per expert and layer: a table, for a heat map.
_TABLES = "moe/tokens/"


def evaluation_of(metrics: Mapping[str, object]) -> dict[str, float]:
    """Metrics on the set `validation` in a record, by their short names: `loss`, `accuracy`, …; no tables."""
    prefix = "eval/validation/"
    found = {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}
    return {
        name: float(value)
        for name, value in found.items()
        if isinstance(value, int | float) and not name.startswith(_TABLES)
    }


@dataclass
class StepRecord:
    """The record of one optimizer step: one line of metrics.jsonl.

    `time` is the end of the step in Unix seconds, even if metrics are added later. A later record of the same step
    takes precedence. `extended`: metrics were added, so that the step is recorded even if it is not due.
    """

    step: int
    metrics: dict[str, float]
    time: float = field(default_factory=time.time)
    extended: bool = False

    def add(self, metrics: Mapping[str, float]) -> None:
        """Add metrics to this step, by full name (`eval/validation/loss`)."""
        self.metrics |= metrics
        self.extended |= bool(metrics)

    def as_line(self) -> dict[str, object]:
        """The object for metrics.jsonl."""
        return {"step": self.step, "time": self.time, **self.metrics}
