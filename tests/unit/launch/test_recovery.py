"""What is decided after a failure, and what is understood of Ray's errors. No cluster is started."""

from __future__ import annotations

import pickle
import socket
from typing import Any

import pytest
from ray.exceptions import RayActorError, RayTaskError

from shardyard.errors import DataError, UnavailableError
from shardyard.launch.ray.failures import failure_of, last_line
from shardyard.launch.ray.worker import rank_error
from shardyard.launch.run.recovery import (
    Count,
    Failure,
    GiveUp,
    RankError,
    Retry,
    decide,
    group_causes,
    is_bug,
)

PASSING = Failure({"a node went away": (1,)}, permanent=False)
LASTING = Failure({"the loss is nan": (0, 1)}, permanent=True)


@pytest.mark.parametrize(
    ("failures", "max_failures", "decision"),
    [
        (1, 3, Retry(0.0)),
        (2, 3, Retry(1.0)),
        (3, 3, Retry(2.0)),
        (4, 3, GiveUp("it failed 4 times without a new checkpoint in between and cluster.max_failures is 3")),
        (1, 1, Retry(0.0)),
        (2, 1, GiveUp("it failed 2 times without a new checkpoint in between and cluster.max_failures is 1")),
        (1, 0, GiveUp("cluster.max_failures is 0")),
        (7, 100, Retry(32.0)),
        (8, 100, Retry(60.0)),
        (100, 100, Retry(60.0)),
        # Two to the power of thousands is no float.
        (5000, 5000, Retry(60.0)),
    ],
)
def test_passing_failures_are_retried_so_many_times(failures: int, max_failures: int, decision: Any) -> None:
    assert decide(PASSING, failures=failures, max_failures=max_failures) == decision


@pytest.mark.parametrize("max_failures", [0, 1, 100])
def test_a_failure_that_would_come_again_is_not_retried(max_failures: int) -> None:
    assert decide(LASTING, failures=1, max_failures=max_failures) == GiveUp("it would fail again")


def test_ranks_are_grouped_by_what_they_say_the_lowest_first() -> None:
    grouped = group_causes({3: "b", 0: "a", 2: "b", 1: "a"})
    assert list(grouped.items()) == [("a", (0, 1)), ("b", (2, 3))]
    assert group_causes({}) == {}


@pytest.mark.parametrize(
    ("causes", "text"),
    [
        ({"lost": (1,)}, "rank 1: lost"),
        ({"lost": (0, 2), "late": (1,)}, "ranks 0, 2: lost\nrank 1: late"),
        ({"no workers": ()}, "no workers"),
        ({}, ""),
    ],
)
def test_a_failure_is_described_a_line_a_cause(causes: dict[str, tuple[int, ...]], text: str) -> None:
    assert Failure(causes, permanent=False).describe() == text


def test_failures_are_counted_from_the_last_that_had_gained_a_checkpoint() -> None:
    count, counts = Count(), []
    for newest_checkpoint in (0, 0, 10, 10, 10, 20, 20, 15):
        count = count.after(newest_checkpoint)
        counts.append(count.failures)
    assert counts == [1, 2, 1, 2, 3, 1, 2, 3]
    assert count == Count(3, 20)


def of_ranks(errors: dict[int, BaseException]) -> Failure:
    """The failure of workers that had their ranks."""
    return failure_of(errors, lambda rank, text: last_line(text))


def test_a_server_that_stumbles_may_be_well_again_and_a_missing_file_is_not() -> None:
    assert not rank_error(UnavailableError("503 for five minutes"), stepped=False).permanent
    assert rank_error(DataError("404"), stepped=False).permanent


def test_a_rank_error_is_read_as_it_was_raised() -> None:
    found = of_ranks({1: RankError("lost its peer", False), 0: RankError("lost its peer", False)})
    assert found == Failure({"lost its peer": (0, 1)}, permanent=False)


def test_one_permanent_cause_makes_the_failure_permanent() -> None:
    """The others only lost their peer, which alone would be worth another try."""
    found = of_ranks({0: RankError("lost its peer", False), 1: RankError("the source is empty", True)})
    assert found == Failure({"lost its peer": (0,), "the source is empty": (1,)}, permanent=True)


def as_a_task_raises(cause: Exception) -> Exception:
    """How Ray hands over what a remote function raised: an exception of both types, with the traceback as its text."""
    return RayTaskError(
        "train_fn", "Traceback (most recent call last):\n  ...\nRankError: text", cause
    ).as_instanceof_cause()


def chained(cause: Exception) -> Exception:
    error = RuntimeError("outer")
    error.__cause__ = as_a_task_raises(cause)
    return error


@pytest.mark.parametrize("wrap", [as_a_task_raises, chained])
def test_a_rank_error_is_found_inside_what_ray_wraps_around_it(wrap: Any) -> None:
    found = of_ranks({0: wrap(RankError("the loss is nan", True))})
    assert found == Failure({"the loss is nan": (0,)}, permanent=True)


def test_a_worker_that_died_says_its_last_line_and_may_be_retried() -> None:
    found = of_ranks({1: RayActorError(error_msg="The actor died.\n\n  exit code 137  \n")})
    assert found == Failure({"exit code 137": (1,)}, permanent=False)
    found = of_ranks({1: RuntimeError("")})
    assert found == Failure({"the worker ended without a message": (1,)}, permanent=False)


def test_exceptions_that_cause_each_other_end() -> None:
    first, second = RuntimeError("first"), RuntimeError("second")
    first.__cause__, second.__cause__ = second, first
    assert of_ranks({0: first}).causes == {"first": (0,)}


def test_a_rank_error_travels_through_pickle() -> None:
    copy = pickle.loads(pickle.dumps(RankError("text with\nlines", True)))
    assert (copy.message, copy.permanent) == ("text with\nlines", True)


def raised(error: BaseException, *, cause: BaseException | None = None, during: BaseException | None = None) -> Any:
    """The error as `raise … from cause`, or inside the handling of another, leaves it."""
    error.__cause__, error.__context__ = cause, during
    error.__suppress_context__ = cause is not None
    return error


@pytest.mark.parametrize(
    ("error", "bug"),
    [
        (AttributeError("module 'torch' has no attribute 'odd'"), True),
        (ModuleNotFoundError("No module named 'peft'"), True),
        (ImportError("libcudart.so.13: cannot open shared object file"), True),
        (TypeError("unexpected keyword"), True),
        (UnboundLocalError("x"), True),
        (NotImplementedError(), True),
        (raised(TypeError("second"), cause=KeyError("first")), True),
        (RuntimeError("NCCL error: unhandled system error"), False),
        (OSError("stale file handle"), False),
        (MemoryError(), False),
        (ValueError("half an answer of a server"), False),
        # What follows from something that may pass, may pass.
        (raised(AttributeError("closed"), during=ConnectionResetError("peer")), False),
        (raised(ImportError("cannot read it"), cause=OSError("stale file handle")), False),
    ],
)
def test_a_bug_is_told_from_what_may_pass(error: Exception, bug: bool) -> None:
    assert is_bug(error) is bug


def test_a_bug_before_the_first_step_is_permanent_and_names_its_host() -> None:
    first = rank_error(ModuleNotFoundError("No module named 'peft'"), stepped=False)
    assert first.permanent
    assert first.message == (
        f"ModuleNotFoundError: No module named 'peft' (on {socket.gethostname()}, before the first step: a bug, or "
        "broken packages there)"
    )
    later = rank_error(TypeError("odd batch"), stepped=True)
    assert (later.message, later.permanent) == ("TypeError: odd batch", False)
    assert not rank_error(RuntimeError("NCCL"), stepped=False).permanent


def test_what_others_say_at_length_is_cut() -> None:
    """torch names all its backends on one line where a tensor is of none of them."""
    message = rank_error(RuntimeError("Could not run 'aten::empty' " + "on backends " * 100), stepped=True).message
    assert message.startswith("RuntimeError: Could not run 'aten::empty' on")
    assert message.endswith(" …")
    assert len(message) < 330


def test_a_worker_that_cannot_import_itself_is_not_started_again() -> None:
    """On one host a package is missing; the others lose their peer."""
    missing = RayTaskError(
        "work", "ray::work() (pid=7, ip=10.0.0.2)\nModuleNotFoundError: No module named 'x'", ModuleNotFoundError("x")
    )
    found = of_ranks({0: RankError("lost its peer", False), 1: missing.as_instanceof_cause()})
    assert found.permanent
    assert list(found.causes)[1] == (
        "ModuleNotFoundError: No module named 'x' (on 10.0.0.2, before the first step: a bug, or broken packages there)"
    )


def test_workers_that_had_no_ranks_yet_are_not_named() -> None:
    lost = failure_of(
        {0: RayActorError(error_msg="its node has died"), 1: RayActorError(error_msg="its node has died")}
    )
    assert lost == Failure({"its node has died": ()}, permanent=False)


def test_a_host_where_a_worker_cannot_be_imported_is_not_tried_again() -> None:
    said = (
        "The actor with name RankWorker failed to import on the worker. This may be because needed library "
        "dependencies are not installed in the worker environment:\n\nray::X() (pid=7, ip=10.0.0.3)\n"
        "ModuleNotFoundError: No module named 'shardyard'"
    )
    found = failure_of({0: RuntimeError(said)})
    assert found.permanent
    assert next(iter(found.causes)).startswith("ModuleNotFoundError: No module named 'shardyard' (on 10.0.0.3")
    assert not failure_of({0: RuntimeError("the port is taken")}).permanent
