"""The batches of a run whose stages differ: how many rows each takes, and which mixture they are drawn from."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from shardyard.data.formats import FormatInputs, make_rows
from shardyard.data.mixture.draws import MixturePlan, plan_of
from shardyard.data.stream.rows import Fills, Row, Rows, RowStream
from shardyard.data.stream.shuffle import Windows
from shardyard.data.stream.streams import StreamSettings
from shardyard.objectives.registry import objective_spec
from shardyard.planning.stages import StagePlan
from shardyard.recipe.mixture.weights import is_planned, weights_of
from shardyard.recipe.schema import Data


@dataclass(frozen=True)
class StageBatches:
    """The batches of one stage, as the loader needs them. first_row: of the run. weights: of the sources."""

    first_row: int
    global_batch: int
    micro_batch: int
    sequence_length: int | None
    weights: tuple[float, ...]


@dataclass(frozen=True)
class BatchPlan:
    """All batches of a rank: one stage, or several. `formats` are those of the stages, one object for equal lengths."""

    stages: tuple[StageBatches, ...]
    formats: tuple[Rows, ...]
    dp_size: int
    is_finite: bool = False

    def size_at(self, number: int) -> int:
        """Rows of the rank in the batch that begins with its row `number`."""
        return self.stages[self._stage_of(number)].global_batch // self.dp_size

    def micro_batch_at(self, number: int) -> int:
        """Rows of a micro-batch there, or more than there are."""
        return self.stages[self._stage_of(number)].micro_batch

    def format_at(self, number: int) -> Rows:
        """The format of row `number` of the rank."""
        return self.formats[self._stage_of(number)]

    def filler_at(self, number: int) -> Row | None:
        """A row without targets in place of row `number` of the rank, for a stream that has ended; None if the format
        has none."""
        assert self.is_finite, "a training stream never ends"
        format_ = self.format_at(number)
        return format_.filler() if isinstance(format_, Fills) else None

    @property
    def fills(self) -> bool:
        """Whether there are rows without targets in all stages."""
        return all(isinstance(format_, Fills) for format_ in self.formats)

    @property
    def num_cut(self) -> int:
        """Tokens that did not fit a row."""
        return sum(format_.num_cut for format_ in dict.fromkeys(self.formats))

    def streams_of(self, settings: StreamSettings) -> StreamSettings:
        """The settings with these formats."""
        return replace(settings, rows=self.formats[0].stream, stage_rows=self.stage_rows)

    def _stage_of(self, number: int) -> int:
        return bisect_right([stage.first_row // self.dp_size for stage in self.stages], number) - 1

    @property
    def stage_rows(self) -> tuple[Callable[[Windows], RowStream], ...]:
        """The rows of each stage; empty if they are the same in all."""
        same = all(format_ is self.formats[0] for format_ in self.formats)
        return () if same else tuple(format_.stream for format_ in self.formats)


def stage_batches(stages: Sequence[StagePlan]) -> list[StageBatches]:
    """The batches of the stages of a plan."""
    return [
        StageBatches(one.first_row, one.global_batch, one.micro_batch, one.sequence_length, one.weights)
        for one in stages
    ]


def batch_plan(
    stages: Sequence[StageBatches], inputs: FormatInputs, objective: str, dp_size: int, *, is_finite: bool = False
) -> BatchPlan:
    """The batches of a rank.

    Raises:
        DataError: the tokenizer lacks a token that the format needs.
    """
    formats: dict[int | None, Rows] = {}
    for stage in stages:
        if stage.sequence_length not in formats:
            data = inputs.data.model_copy(update={"sequence_length": stage.sequence_length})
            formats[stage.sequence_length] = make_rows(objective, replace(inputs, data=data))
    return BatchPlan(tuple(stages), tuple(formats[stage.sequence_length] for stage in stages), dp_size, is_finite)


def mixture_of(data: Data, objective: str, stages: Sequence[StageBatches] = ()) -> MixturePlan | None:
    """The draws of the sources; None for a recipe whose sources are drawn independently by weight."""
    if not is_planned(data):
        return None
    sequences = objective_spec(objective).sequences
    stages = stages or (StageBatches(0, 1, 1, data.sequence_length, tuple(weights_of(data))),)
    return plan_of(
        [stage.weights for stage in stages],
        [stage.first_row for stage in stages],
        # Without text there are no budgets of tokens, and a row counts as one.
        [(stage.sequence_length or 1) * sequences for stage in stages],
        budgets=[source.tokens for source in data.train],
        passes=[source.epochs for source in data.train],
    )
