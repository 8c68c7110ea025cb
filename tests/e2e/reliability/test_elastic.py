"""A run whose number of workers follows the cluster: a node is lost, another one comes, the losses stay the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from e2e.test_placement_e2e import end, ray_node
from support.cli import Command, write_recipe
from support.cluster import ray_head
from support.hold import SLOW
from support.tiny import write_corpus

pytestmark = [pytest.mark.slow, pytest.mark.cluster]


@pytest.fixture
def head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    with ray_head(tmp_path) as environment:
        yield environment


def losses(command: Command) -> dict[int, float]:
    return {int(line["step"]): line["train/loss"] for line in command.metrics()}


def test_a_run_shrinks_with_its_cluster_and_grows_again(head: dict[str, str], tmp_path: Path) -> None:
    # A worker takes a node.
    recipe = write_recipe(
        tmp_path,
        write_corpus(tmp_path),
        model={"dropout": 0.0},
        # A higher rate makes more of the rounding of sums in another order.
        optimizer={"lr": 3e-4},
        train={"steps": 100000, "precision": "fp32"},
        checkpoint={"every": 10},
        evaluate={"every": 100000},
        cluster={
            "workers": 2,
            "min_workers": 1,
            "grow_after": 1,
            "cpus_per_worker": 2,
            "gpus_per_worker": 0,
            "spares": False,
        },
    )
    with ExitStack() as stack:
        second = stack.enter_context(ray_node(head, tmp_path))
        command = stack.enter_context(Command("launch", recipe, "-s", SLOW, runs=tmp_path / "runs", **head))
        command.wait_for_step(15)
        assert command.info()["world_size"] == 2
        end(second)
        command.wait_for(lambda: command.info()["world_size"] == 1)
        shrunk = max(losses(command))
        command.wait_for_step(shrunk + 5)
        stack.enter_context(ray_node(head, tmp_path))
        command.wait_for(lambda: command.info()["world_size"] == 2)
        grown = max(losses(command))
        command.wait_for_step(grown + 5)
        command.interrupt()
        code, output = command.finish()
    assert code == 130, output
    assert "no room for 2 workers: trains on 1" in output
    assert "there is room for 2 workers" in output
    found = losses(command)
    # Growing costs no step: each is recorded once after the node was lost.
    steps = [int(line["step"]) for line in command.metrics()]
    assert steps == list(range(1, max(found) + 1))
    until = max(found)
    with Command("launch", recipe, "--local", "--until", until, runs=tmp_path / "alone") as alone:
        code, output = alone.finish()
    assert code == 0, output
    assert losses(alone) == pytest.approx(found, abs=1e-4)
