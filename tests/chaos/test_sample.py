"""A sample of the matrix of faults, and its arithmetic; `make chaos` runs all of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos.box import possible
from chaos.cell import Where
from chaos.matrix import cells
from chaos.soak import is_made_up, made_up
from chaos.trial import State

STATE = State({"model": "a"}, {1: ["r", "s"], 2: ["t"]}, {1: 2.5, 2: 2.25})


def test_cells_have_names_of_their_own() -> None:
    names = [cell.name for cell in cells()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (STATE, ""),
        (State({"model": "b"}, STATE.rows, STATE.losses), "weights differ"),
        (State(STATE.weights, {1: ["r"], 2: ["t"]}, STATE.losses), "rows differ in 1 steps from 1 on"),
        (State(STATE.weights, STATE.rows, {1: 2.5, 2: 2.2500001}), "losses differ"),
    ],
)
def test_what_is_not_equal_is_named(other: State, text: str) -> None:
    assert other.differs(STATE) == text


def test_across_worlds_losses_may_differ_a_little() -> None:
    near = State({"model": "b"}, STATE.rows, {1: 2.5, 2: 2.25001})
    assert near.differs(STATE, tolerance=1e-4) == ""
    assert near.differs(STATE, tolerance=1e-6) == "losses differ by 1.0e-05"
    assert State({}, STATE.rows, {1: 2.5}).differs(STATE, tolerance=1e-4).startswith("losses differ by 1.0e+09")


def test_a_fault_is_made_up_for_once_a_later_step_is_done() -> None:
    steps = [(1.0, 1), (2.0, 2), (3.0, 3), (10.0, 2), (11.0, 3), (12.0, 4), (13.0, 5)]
    assert made_up([3.5], steps, 20.0) == [8.5]
    # The second one falls into the recovery from the first.
    assert made_up([3.5, 10.5], steps, 20.0) == [8.5, 0.0]
    assert made_up([13.5], steps, 20.0) == [6.5], "until the end"
    assert made_up([], steps, 20.0) == []
    assert [is_made_up(fault, steps) for fault in (3.5, 10.5, 13.5)] == [True, True, False]
    assert not is_made_up(3.5, steps[:5]), "the same steps again"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the undisturbed run is kept."""
    return tmp_path_factory.mktemp("shared")


@pytest.mark.slow
@pytest.mark.skipif(not possible(), reason="makes namespaces of its own")
def test_a_save_that_fails_costs_a_checkpoint_and_is_told(shared: Path, tmp_path: Path) -> None:
    """In the terminal and in `runs RUN`: which save, where, why, and what goes on; the cell looks for each."""
    (cell,) = [one for one in cells() if one.name == "save-error-30"]
    found = cell.run(Where(tmp_path / "cell", shared))
    assert (found.went_on, found.state, list(found.left)) == ("by itself", "bitwise", [])
    assert found.told.startswith("the checkpoint of step 30 could not be written: rank 1: Read-only file")
    assert found.good


@pytest.mark.slow
@pytest.mark.skipif(not possible(), reason="makes namespaces of its own")
def test_a_killed_rank_changes_nothing_and_leaves_nothing(shared: Path, tmp_path: Path) -> None:
    (cell,) = [one for one in cells() if one.name == "sigkill-step"]
    found = cell.run(Where(tmp_path / "cell", shared))
    assert (found.went_on, found.state, list(found.left)) == ("by itself", "bitwise", [])
    assert found.lost == 4
    assert found.detected is not None
    assert found.next_step is not None
