"""The collectives of a rank in its beat, on real gloo ranks, and the limits that follow from measured steps."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed
from torch.distributed import distributed_c10d

from shardyard.engine.watch import limits
from shardyard.engine.watch.collectives import OPERATIONS, WAITING, limit_collectives, record_collectives
from shardyard.engine.watch.limits import CollectiveLimits, step_limit
from shardyard.engine.watch.trace import answer_questions
from shardyard.engine.world import Rank
from shardyard.tracking.watch.beat import BEAT
from shardyard.tracking.watch.judge import missing_from
from shardyard.tracking.watch.look import Collective, Target, look, question_and_end
from support.ranks import run_ranks
from support.waiting import until


def test_every_replaced_name_is_there() -> None:
    group: Any = distributed.ProcessGroup
    assert [name for name in (*OPERATIONS, *WAITING) if not callable(getattr(group, name, None))] == []


def _seen_by_the_other(rank: Rank) -> list[str]:
    """Rank 0 waits in a collective until rank 1, which looks at it from outside, has seen that."""
    record_collectives()
    answer_questions()
    handles: list[Any] = [None, None]
    distributed.all_gather_object(handles, (os.getpid(), BEAT.open()))
    targets = [Target(number, pid, "here", handle) for number, (pid, handle) in enumerate(handles)]
    tensor = torch.ones(12)
    told: list[str] = []
    if rank.rank == 1:

        def in_all_reduce() -> Collective | None:
            # It may still end the gathering above, of which this rank is done.
            waiting = look(targets[:1])[0].waiting
            return waiting if waiting is not None and waiting.operation == "all_reduce" else None

        waiting = until(in_all_reduce, "rank 0 waits in all_reduce")
        told = [waiting.operation, waiting.kind, str(waiting.elements), str(waiting.members)]
        told.append(missing_from(look(targets), ())[1])
        (evidence,) = question_and_end(targets[:1], end=False)
        assert "all_reduce" in evidence.stacks
        assert isinstance(json.loads(evidence.trace), dict), "torch's own record"
    distributed.all_reduce(tensor)
    assert tensor[0] == 2.0
    (mine,) = look(targets[rank.rank : rank.rank + 1])
    assert mine.waiting is None
    # An asynchronous one waits only where its result is needed.
    work = distributed.all_reduce(tensor, async_op=True)
    assert look(targets[rank.rank : rank.rank + 1])[0].waiting is None
    assert work is not None
    work.wait()
    return told


@pytest.mark.slow
def test_a_rank_that_waits_is_seen_from_outside_with_who_is_missing() -> None:
    _, (operation, kind, elements, members, why) = run_ranks(2, _seen_by_the_other)
    assert (operation, kind, elements, members) == ("all_reduce", "float32", "12", "(0, 1)")
    assert why.startswith("rank 1 did not come to all_reduce #")


def test_limits_of_collectives_follow_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    assert step_limit(0.0, 1800.0) == 1800.0
    assert step_limit(1.0, 1800.0) == 300.0
    assert step_limit(40.0, 1800.0) == 800.0
    assert step_limit(400.0, 1800.0) == 1800.0
    assert step_limit(1.0, 60.0) == 60.0, "never above the recipe's"
    found: list[float] = []
    monkeypatch.setattr(limits, "limit_collectives", found.append)
    monkeypatch.setattr(BEAT, "_steps", 0)
    mine = CollectiveLimits(1800.0, alone=False)
    mine.in_step()
    assert found == [], "the first steps tell nothing yet"
    monkeypatch.setattr(BEAT, "_steps", limits.NUM_FIRST_STEPS)
    monkeypatch.setattr(BEAT, "longest_step", lambda: 1.0)
    for _ in range(2):
        mine.in_step()
    mine.beside_step()
    mine.beside_step()
    mine.in_step()
    assert found == [300.0, 1800.0, 300.0]
    assert CollectiveLimits(1800.0, alone=True).in_step() is None
    assert len(found) == 3


def test_groups_that_exist_take_a_new_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("default_pg_timeout", "default_pg_nccl_timeout"):
        monkeypatch.setattr(distributed_c10d, name, timedelta(seconds=1800))
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    store = distributed.FileStore(str(tmp_path / "store"), 1)  # type: ignore[attr-defined]
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        group = distributed.new_group([0])
        limit_collectives(12.5)
        backend = group._get_backend(torch.device("cpu"))  # type: ignore[union-attr]
    finally:
        distributed.destroy_process_group()
    assert backend.options._timeout == timedelta(seconds=12.5)
