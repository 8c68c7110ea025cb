"""The counts of a mixture over ranks, and the ends that they tell."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from shardyard.engine.hooks.mixture import MixtureHook
from shardyard.errors import DataError
from shardyard.planning.sources import SourcePlan
from shardyard.tracking.metrics.record import StepRecord
from shardyard.tracking.run.events import Event, SourcesExhausted


class Kept:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def event(self, event: Event) -> None:
        self.events.append(event)

    def sample(self, step: int, prompt: str, text: str) -> None: ...


def hook_of(events: Kept, *, world: int, data: int, fills: bool, epochs: int = 1) -> MixtureHook:
    plan: Any = SimpleNamespace(
        steps=9,
        streams=4,
        tokens_per_row=8,
        stages=(),
        sources=(SourcePlan("a", (1.0,), (8.0,), most_epochs=epochs),),
        stage_at=lambda step: None,
    )
    mesh: Any = SimpleNamespace(world=SimpleNamespace(size=world), data=SimpleNamespace(size=data))
    return MixtureHook(["a", "b"], plan, mesh, events, fills=fills)


def batch(sources: tuple[int, ...], epochs: dict[str, tuple[int, int]], *, more: bool = True) -> Any:
    state = {index: {"sources": [{"epoch": one} for one in both]} for index, both in epochs.items()}
    return SimpleNamespace(row_sources=sources, state=state, more=more)


def summed(hook: MixtureHook, *batches: Any) -> tuple[float, ...]:
    return tuple(map(sum, zip(*(hook.counts(one) for one in batches), strict=True)))


def test_ranks_that_read_the_same_rows_count_once() -> None:
    hook = hook_of(Kept(), world=4, data=2, fills=True)
    first, second = batch((0, 0, 1), {"0": (1, 0), "2": (1, 0)}), batch((1, 1, -1), {"1": (2, 0), "3": (1, 1)})
    hook.take(1, summed(hook, first, first, second, second))
    assert hook.metrics() == {"data/tokens/a": 16, "data/tokens/b": 24, "data/passes/a": 1.25, "data/passes/b": 0.25}
    other = hook_of(Kept(), world=4, data=2, fills=True)
    other.load_state_dict(hook.state_dict())
    other.take(2, summed(hook, first, first, second, second))
    assert other.metrics()["data/tokens/a"] == 32


@pytest.mark.parametrize(("fills", "ends"), [(True, False), (False, True)])
def test_a_run_ends_with_its_last_rank_or_with_the_first_that_cannot_fill_a_batch(*, fills: bool, ends: bool) -> None:
    kept = Kept()
    hook = hook_of(kept, world=2, data=2, fills=fills)
    states = {"0": (0, 0)}
    hook.take(3, summed(hook, batch((0,), states), batch((0,), states, more=False)))
    assert hook.stop is ends
    hook.take(4, summed(hook, batch((0,), states, more=False), batch((0,), states, more=False)))
    assert hook.stop
    hook.on_step(StepRecord(4, {}))
    assert kept.events == [SourcesExhausted(step=4, steps=9)]
    # At the last step of the plan nothing is cut short.
    hook.on_step(StepRecord(9, {}))
    assert len(kept.events) == 1
    resumed = hook_of(kept, world=2, data=2, fills=fills)
    resumed.load_state_dict(json.loads(json.dumps(hook.state_dict())))
    assert resumed.stop
    # Resumed with more passes, it goes on.
    allowed = hook_of(kept, world=2, data=2, fills=fills, epochs=2)
    allowed.load_state_dict(json.loads(json.dumps(hook.state_dict())))
    assert not allowed.stop


def test_sources_that_have_nothing_at_all_are_an_error() -> None:
    hook = hook_of(Kept(), world=1, data=1, fills=True)
    with pytest.raises(DataError, match="the sources hold nothing to learn from"):
        hook.take(1, summed(hook, batch((-1, -1), {"0": (0, 0)}, more=False)))
