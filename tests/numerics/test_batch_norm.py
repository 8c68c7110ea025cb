"""Batch normalisation: running statistics are shared by ranks, survive a restart to the bit, and reach the export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from shardyard.engine.deepspeed.batch_norm import RunningStatistics
from shardyard.engine.inference.load import load_trained
from shardyard.engine.run import Job, run_rank
from shardyard.engine.world import Rank
from shardyard.recipe.loading.load import parse_recipe
from shardyard.tracking.run.folder import read_metrics
from support.objectives import image_classification
from support.ranks import data_axis, run_ranks
from support.tiny import tiny_job

pytestmark = pytest.mark.slow

# Stage and precision: in half precision a running mean must not be rounded.
CASES = [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (0, "bf16"), (1, "bf16"), (3, "bf16")]


@dataclass(frozen=True)
class Trained:
    """The same recipe on two ranks, in one go and with a break after an odd step."""

    straight: Job
    broken: Job


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str], Trained]:
    jobs = {case: _jobs(tmp_path_factory.mktemp("bn"), *case) for case in CASES}
    runs = [run for one in jobs.values() for run in ((one.straight, None), (one.broken, 3), (one.broken, None))]
    run_ranks(2, _run_all, runs)
    return jobs


def _jobs(folder: Path, stage: int, precision: str) -> Trained:
    fields = image_classification.resnet_fields(image_classification.write_data(folder))
    fields |= {"zero": {"stage": stage}, "cluster": {"workers": 2}}
    fields["train"] = fields["train"] | {"precision": precision}

    def job(name: str) -> Job:
        return tiny_job(parse_recipe({**fields, "name": name}), folder / "runs", world_size=2)

    return Trained(job("straight"), job("broken"))


def _run_all(rank: Rank, runs: list[tuple[Job, int | None]]) -> None:
    for job, until in runs:
        run_rank(Job(job.recipe, job.plan, job.folder, until), rank)


def _weights(job: Job) -> dict[str, Tensor]:
    found: dict[str, Tensor] = load_file(job.folder.path / "final" / "model.safetensors")
    return found


def _curve(job: Job) -> list[float]:
    return [line["train/loss"] for line in read_metrics(job.folder.metrics) if "train/loss" in line]


@pytest.mark.parametrize("case", CASES)
def test_a_break_changes_no_bit(trained: dict[tuple[int, str], Trained], case: tuple[int, str]) -> None:
    straight, broken = _weights(trained[case].straight), _weights(trained[case].broken)
    assert straight.keys() == broken.keys()
    assert [name for name in straight if not torch.equal(straight[name], broken[name])] == []
    assert _curve(trained[case].straight) == _curve(trained[case].broken)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_stages_agree(trained: dict[tuple[int, str], Trained], stage: int) -> None:
    reference, found = (_weights(trained[case].straight) for case in ((0, "fp32"), (stage, "fp32")))
    for name, value in reference.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("case", CASES)
def test_statistics_are_counted_and_kept_in_fp32(
    trained: dict[tuple[int, str], Trained], case: tuple[int, str]
) -> None:
    weights = _weights(trained[case].straight)
    means = {name: value for name, value in weights.items() if name.endswith("running_mean")}
    counts = [int(value) for name, value in weights.items() if name.endswith("num_batches_tracked")]
    assert means
    assert counts == [8] * len(means), "one update for each of eight steps with one micro-batch a rank"
    for name, value in means.items():
        assert value.dtype == torch.float32
        assert not torch.equal(value, value.bfloat16().float()), f"{name} is rounded"


@pytest.mark.parametrize("case", [(1, "fp32"), (3, "fp32")])
def test_the_exported_model_measures_the_same(trained: dict[tuple[int, str], Trained], case: tuple[int, str]) -> None:
    job = trained[case].straight
    measured = [line for line in read_metrics(job.folder.metrics) if "eval/validation/loss" in line][-1]
    found = load_trained(job.folder).evaluate()
    assert found["loss"] == pytest.approx(measured["eval/validation/loss"], rel=1e-5)
    assert found["accuracy"] == pytest.approx(measured["eval/validation/accuracy"], abs=1e-9)


def test_ranks_share_the_mean_of_their_statistics() -> None:
    first, second = run_ranks(2, _averaged)
    assert first == second == [[0.5, 0.5], [1.5, 1.5], [3.0]]


def _averaged(rank: Rank) -> list[list[float]]:
    layer = nn.BatchNorm1d(2)
    layer.running_mean.fill_(rank.rank)
    layer.running_var.fill_(1 + rank.rank)
    layer.num_batches_tracked.fill_(3)
    RunningStatistics(nn.Sequential(nn.Linear(2, 2), layer), data_axis(rank)).average()
    return [buffer.flatten().tolist() for buffer in layer.buffers()]
