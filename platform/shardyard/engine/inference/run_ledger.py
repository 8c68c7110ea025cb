"""The steps of a run as they count, over all its attempts: which rows each had, and the known states of its streams."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from shardyard.data.ledger.record import AttemptRecord, Header, read_ledger
from shardyard.data.ledger.replay import Known, Replay
from shardyard.data.mixture.batches import stage_batches
from shardyard.data.stream.streams import StreamState, StreamStates
from shardyard.engine.checkpoint.files import committed_checkpoints, step_of
from shardyard.engine.components import Components, make_components
from shardyard.errors import RunFolderError
from shardyard.planning.stages import StagePlan, rows_planned, stage_of_record
from shardyard.recipe.batching import streams_of
from shardyard.recipe.mesh import data_size
from shardyard.recipe.schema import Data, Recipe
from shardyard.tracking.files import MetricsTail
from shardyard.tracking.run.folder import RunFolder


@dataclass
class Segment:
    """Consecutive steps of a run that were trained by one attempt, or by several with the same recipe.

    start: steps before the first. end: the last step; None if more may follow. first_row: number of the first row in
    the run. readers: ranks that read different rows. states: stream → (step, state) in their order.
    """

    start: int
    recipe: Recipe
    streams: int
    readers: int
    first_row: int
    end: int | None = None
    stages: tuple[StagePlan, ...] = ()
    states: dict[int, dict[int, StreamState]] = field(default_factory=dict)

    @property
    def batch(self) -> int:
        """Rows of a step of the first stage."""
        return self.recipe.train.global_batch

    def rows_of(self, step: int) -> range:
        """The numbers of the rows of a step."""
        before = self.first_row - rows_planned(self.start, self.batch, self.stages)
        first, end = (before + rows_planned(steps, self.batch, self.stages) for steps in (step - 1, step))
        return range(first, end)

    def step_of(self, row: int) -> tuple[int, int]:
        """The step of a row, and its number in the global batch."""
        at = row - self.first_row + rows_planned(self.start, self.batch, self.stages)
        stage = next((one for one in reversed(self.stages) if one.first_row <= at), None)
        begin, first, batch = (
            (0, 0, self.batch) if stage is None else (stage.begin, stage.first_row, stage.global_batch)
        )
        steps, number = divmod(at - first, batch)
        return begin + 1 + steps, number

    def known(self, stream: int) -> list[Known]:
        """The known states of a stream, from the start of the segment on."""
        found = [Known(state["rows"], state) for _, state in sorted(self.states.get(stream, {}).items())]
        first = len(range(stream, self.first_row, self.streams))
        return found if self.first_row and found and found[0].rows <= first else [Known(0, None), *found]

    def rows_until(self, step: int) -> dict[int, int]:
        """Stream → its number of rows after a step."""
        return {stream: len(range(stream, self.rows_of(step).stop, self.streams)) for stream in range(self.streams)}

    def make(self) -> tuple[Components, Replay]:
        """What makes its rows again."""
        components = make_components(self.recipe)
        replay = Replay(
            components.format_inputs,
            self.recipe.objective,
            streams=self.streams,
            seed=self.recipe.train.seed,
            global_batch=self.batch,
            stages=stage_batches(self.stages),
        )
        return components, replay


@dataclass(frozen=True)
class RunLedger:
    """The segments of a run. trained: the last step that is known to have been trained. recorded: whether the run has a
    ledger; without one, states are known from its checkpoints alone."""

    segments: tuple[Segment, ...]
    trained: int
    recorded: bool

    def segment(self, step: int) -> Segment:
        """The segment of a step."""
        return next(one for one in reversed(self.segments) if one.start < step)


def read_run(folder: RunFolder, recipe: Recipe) -> RunLedger:
    """The steps of a run with this recipe. Where an attempt repeated steps after going back to a checkpoint, its own
    count.

    Raises:
        RunFolderError: a checkpoint or the section data of an earlier attempt cannot be read.
    """
    info = folder.info()
    stored = info.data
    streams = int(stored.get("streams") or stored.get("lanes") or streams_of(recipe, info.world_size or 1))
    attempts = read_ledger(folder.ledger)
    stages = tuple(stage for one in info.plan.get("stages", ()) if (stage := stage_of_record(one)) is not None)
    segments = [Segment(0, recipe, streams, data_size(recipe, info.world_size or 1), 0, stages=stages)]
    for attempt in attempts:
        start = attempt.header["step"]
        while segments and segments[-1].start >= start:
            segments.pop()
        if segments:
            segments[-1].end = start
            segments[-1].states = {
                stream: {step: state for step, state in states.items() if step <= start}
                for stream, states in segments[-1].states.items()
            }
        segments.append(_segment(attempt, recipe, stages))
    _add_checkpoints(folder.checkpoints, segments)
    last = max([0, info.step, *_steps_of(segments[-1])])
    if metrics := MetricsTail(folder.metrics).new() if folder.metrics.exists() else []:
        last = max(last, int(metrics[-1].get("step", 0)))
    return RunLedger(tuple(segments), last, bool(attempts))


def _segment(attempt: AttemptRecord, recipe: Recipe, stages: tuple[StagePlan, ...]) -> Segment:
    header = attempt.header
    rows = [
        state["rows"]
        for states in attempt.states.values()
        for step, state in states.items()
        if step == header["step"]
    ]  # fmt: skip
    complete = len(rows) == header["streams"]
    first_row = sum(rows) if complete else rows_planned(header["step"], header["global_batch"], stages)
    found = Segment(header["step"], _recipe_then(recipe, header), header["streams"], header["readers"], first_row)
    found.stages = stages
    found.states = attempt.states
    return found


def _recipe_then(recipe: Recipe, header: Header) -> Recipe:
    """The recipe with the values of an attempt, if they were others than those of the last one."""
    train = {"global_batch": header["global_batch"], "seed": header["seed"]}
    data = recipe.data
    if json.loads(json.dumps(header["data"])) != json.loads(json.dumps(recipe.data.model_dump(mode="json"))):
        try:
            data = Data.model_validate(header["data"])
        except ValidationError as error:
            raise RunFolderError(
                f"the ledger of an attempt that began at step {header['step']} has a section data that this version "
                "cannot read, so its rows cannot be made again; use the version of Shardyard that trained it."
            ) from error
    return recipe.model_copy(update={"data": data, "train": recipe.train.model_copy(update=train)})


def _add_checkpoints(checkpoints: Path, segments: list[Segment]) -> None:
    """Add the states of checkpoints to the segments of their steps."""
    for path in committed_checkpoints(checkpoints):
        step = step_of(path)
        segment = next((one for one in reversed(segments) if one.start < step), segments[0])
        if not segment.streams or all(step in segment.states.get(stream, {}) for stream in range(segment.streams)):
            continue
        for stream, state in _states_in(path).items():
            segment.states.setdefault(int(stream), {}).setdefault(step, state)


def _states_in(path: Path) -> StreamStates:
    try:
        found: Mapping[str, StreamState] = json.loads((path / "data.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path / 'data.json'} cannot be read: {error}") from error
    return found


def _steps_of(segment: Segment) -> list[int]:
    return [segment.start, *(step for states in segment.states.values() for step in states)]
