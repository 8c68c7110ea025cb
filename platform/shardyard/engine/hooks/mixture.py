"""The mixture while it is trained on: tokens and passes of each source, stages that begin, data that ends."""

from __future__ import annotations

from typing import TypedDict, cast

from shardyard.data.stream.loader import Batch
from shardyard.engine.hooks.base import EventLog, Hook, HookState
from shardyard.engine.mesh import Mesh
from shardyard.errors import DataError
from shardyard.planning.plan import RunPlan
from shardyard.tracking.metrics.record import StepRecord, source_passes, source_tokens
from shardyard.tracking.run.events import SourcesExhausted, StageBegun


class _State(TypedDict):
    tokens: list[int]
    exhausted: bool
    limits: list[list[int | None]]


class MixtureHook(Hook):
    """Counts what the global batches hold of each source; `stop` becomes true once a batch cannot be made any more.

    The counts of the ranks are summed with the loss (`counts`, then `take`), so all ranks know the same.

    Args:
        names: of the sources of data.train.
        fills: whether batches are filled up with rows without targets, so that all streams train to their end.
    """

    name = "mixture"
    reads_metrics = False
    may_lag = True

    def __init__(self, names: list[str], plan: RunPlan, mesh: Mesh, events: EventLog, *, fills: bool) -> None:
        super().__init__()
        self._names, self._plan, self._mesh, self._events, self._fills = names, plan, mesh, events, fills
        self._tokens = [0] * len(names)
        self._passes = [0.0] * len(names)
        self._exhausted = False
        # What a resumed run may have been given more of.
        self._limits = [[source.most_epochs, source.most_tokens] for source in plan.sources]

    @property
    def stop(self) -> bool:
        """Whether the sources are exhausted."""
        return self._exhausted

    @property
    def may_end(self) -> bool:
        """Whether a source has a limit, so that there may be no further batch: `stop` must then be known in time."""
        return any(limit is not None for limits in self._limits for limit in limits)

    def counts(self, batch: Batch) -> list[float]:
        """What this rank adds: whether it has a further batch, rows of each source, finished passes of its streams."""
        rows = [float(batch.row_sources.count(source)) for source in range(len(self._names))]
        streams = [state["sources"] for state in batch.state.values()]
        passes = [float(sum(sources[index]["epoch"] for sources in streams)) for index in range(len(self._names))]
        return [float(batch.more), *rows, *passes]

    def take(self, step: int, summed: tuple[float, ...]) -> None:
        """Take the sums of all ranks over a step.

        Raises:
            DataError: the sources end, and nothing has been trained on.
        """
        number, world = len(self._names), self._mesh.world.size
        # Ranks that read the same rows count once.
        copies = world / self._mesh.data.size
        stage = self._plan.stage_at(step)
        row_tokens = self._plan.tokens_per_row if stage is None else stage.tokens_per_row
        for index in range(number):
            self._tokens[index] += round(summed[1 + index] / copies) * row_tokens
            self._passes[index] = summed[1 + number + index] / copies / self._plan.streams
        more = round(summed[0])
        self._exhausted = not more if self._fills else more < world
        if self._exhausted and not any(self._tokens):
            raise DataError("the sources hold nothing to learn from within their `epochs` and `tokens`.")

    def metrics(self) -> dict[str, float]:
        """Tokens since the first step, and finished passes, of each source."""
        tokens = {source_tokens(name): float(value) for name, value in zip(self._names, self._tokens, strict=True)}
        passes = {source_passes(name): value for name, value in zip(self._names, self._passes, strict=True)}
        return tokens | passes

    def on_step(self, record: StepRecord) -> None:
        """Tell that a stage begins, or that the data ends before the plan does."""
        step = record.step
        if self._exhausted and step < self._plan.steps:
            self._events.event(SourcesExhausted(step=step, steps=self._plan.steps))
            return
        for number, stage in enumerate(self._plan.stages, 1):
            if number > 1 and stage.begin == step:
                self._events.event(
                    StageBegun(step=step, number=number, name=stage.name, text=in_words(self._plan, number))
                )

    def state_dict(self) -> HookState:
        """The tokens of each source, and whether the sources are exhausted within which limits."""
        return {
            "tokens": list(self._tokens),
            "exhausted": self._exhausted,
            "limits": [list(one) for one in self._limits],
        }

    def load_state_dict(self, state: HookState) -> None:
        """Continue counting; a run whose sources are exhausted has no further steps, unless it has other limits now."""
        kept = cast(_State, state)
        if len(kept["tokens"]) == len(self._names):
            self._tokens = list(kept["tokens"])
        self._exhausted = kept["exhausted"] and kept["limits"] == self._limits


def in_words(plan: RunPlan, number: int) -> str:
    """What changes with stage `number`, counted from 1: `rows of 8192 tokens, 64 rows a step`."""
    before, stage = plan.stages[number - 2], plan.stages[number - 1]
    told = []
    if stage.sequence_length != before.sequence_length:
        told.append(f"rows of {stage.sequence_length} tokens")
    if stage.global_batch != before.global_batch:
        told.append(f"{stage.global_batch} rows a step")
    if stage.weights != before.weights:
        told.append(f"weights {', '.join(f'{weight:.3g}' for weight in stage.weights)}")
    return ", ".join(told)
