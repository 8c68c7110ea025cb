"""Contrastive training: two ranks are one with the doubled batch; what it learnt classifies images by names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from shardyard.engine.inference.load import load_trained
from shardyard.engine.inference.zero_shot import measure_zero_shot
from shardyard.engine.run import Job, run_rank
from shardyard.engine.world import Rank
from shardyard.errors import DataError, UsageError
from shardyard.objectives.contrastive.gathering import gather_rows
from shardyard.objectives.contrastive.similarity import Similarity
from shardyard.recipe.loading.load import parse_recipe
from shardyard.tracking.run.folder import read_metrics
from support.objectives.contrastive import recipe_fields, write_data
from support.ranks import data_axis, run_ranks
from support.tiny import tiny_job

pytestmark = pytest.mark.slow

ROWS, SIZE = 8, 4


def _embeddings() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(2, ROWS, SIZE, generator=generator, dtype=torch.float64), dim=-1)
    return rows[0], rows[1]


def _gradients(rank: Rank) -> tuple[float, Tensor, Tensor, Tensor]:
    """Loss of this rank's rows, and the gradients of its embeddings and of the scale."""
    share = ROWS // rank.world_size
    own = slice(rank.rank * share, (rank.rank + 1) * share)
    images, texts = (one[own].clone().requires_grad_() for one in _embeddings())
    scale = torch.tensor(7.0, dtype=torch.float64, requires_grad=True)
    everything, first = gather_rows(torch.cat([images, texts], dim=-1), data_axis(rank).group)
    assert first == own.start
    loss = Similarity(scale).loss(images, texts, *everything.chunk(2, dim=-1), first)
    loss.backward()
    assert images.grad is not None
    assert texts.grad is not None
    assert scale.grad is not None
    return float(loss), images.grad, texts.grad, scale.grad


def test_two_ranks_have_the_gradients_of_one() -> None:
    (alone,) = run_ranks(1, _gradients)
    first, second = run_ranks(2, _gradients)
    assert first[0] + second[0] == pytest.approx(alone[0], rel=1e-12)
    for side in (1, 2):
        torch.testing.assert_close(torch.cat([first[side], second[side]]), alone[side], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(first[3] + second[3], alone[3], rtol=1e-10, atol=1e-12)


def _job(folder: Path, stage: int, world_size: int) -> Job:
    fields = recipe_fields(folder / "pairs")
    fields |= {"name": f"clip-{stage}-{world_size}", "zero": {"stage": stage}, "cluster": {"workers": world_size}}
    fields["train"] = {**fields["train"], "steps": 3}
    return tiny_job(parse_recipe(fields), folder / "runs", world_size=world_size)


def _train(rank: Rank, jobs: list[Job]) -> None:
    for job in jobs:
        run_rank(job, rank)


def _curve(job: Job, name: str) -> list[float]:
    return [line[name] for line in read_metrics(job.folder.metrics) if name in line]


def test_stages_have_the_gradient_norms_of_one_rank(tmp_path: Path) -> None:
    write_data(tmp_path)
    jobs = {size: [_job(tmp_path, stage, size) for stage in range(4)] for size in (1, 2)}
    for size, of_size in jobs.items():
        run_ranks(size, _train, of_size)
    losses = [_curve(job, "train/loss") for of_size in jobs.values() for job in of_size]
    # Stage 0 in fp32 has no norm to tell.
    norms = [_curve(job, "train/grad_norm") for of_size in jobs.values() for job in of_size[1:]]
    for curves in (losses, norms):
        assert len(curves[0]) == 3
        for curve in curves:
            assert curve == pytest.approx(curves[0], rel=1e-5)


def test_images_are_classified_by_the_names_of_classes(tmp_path: Path) -> None:
    fields = recipe_fields(write_data(tmp_path))
    fields["data"]["train"][0]["text_column"] = "colour"
    fields["data"]["validation"] = [{"path": str(tmp_path / "pairs" / "*.parquet")}]
    fields["train"] |= {"steps": 60, "global_batch": 32}
    fields["evaluate"]["every"] = fields["checkpoint"]["every"] = 60
    fields["optimizer"]["lr"] = 3e-3
    job = tiny_job(parse_recipe(fields), tmp_path / "runs", world_size=1)
    run_ranks(1, _train, [job])
    trained = load_trained(job.folder)
    found = measure_zero_shot(trained, "colour", rows=40)
    assert (found["classes"], found["rows"], found["chance"]) == (4, 40, 0.25)
    assert found["zero_shot_accuracy"] > 0.8 > found["most_frequent_class"]
    assert measure_zero_shot(trained, "colour", ["{}", "{} square"], rows=5)["rows"] == 5
    with pytest.raises(UsageError, match=r"needs one \{\} where the name"):
        measure_zero_shot(trained, "colour", ["a square"])
    with pytest.raises(DataError, match="has no column 'color'"):
        measure_zero_shot(trained, "color")
