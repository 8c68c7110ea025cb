"""Vision–language families through their own processors train the same at ZeRO stages 2 and 3, resume to the bit, and
answer after export as transformers answers with the exported folder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from shardyard.engine.inference.load import load_trained
from shardyard.engine.run import Job, run_rank
from shardyard.engine.world import Rank
from shardyard.recipe.loading.load import parse_recipe
from shardyard.tracking.run.folder import read_metrics
from support.objectives.contrastive import image
from support.objectives.picture_families import recipe_fields
from support.objectives.vision_language import write_data
from support.ranks import run_ranks
from support.tiny import tiny_job

pytestmark = pytest.mark.slow

# Patches of any number, tiles of a picture, and tokens that see each other: the three kinds of batches.
FAMILIES = ("qwen2_vl", "idefics3", "gemma3")
STEPS = 4


@dataclass(frozen=True)
class Trained:
    """The same recipe on two ranks at stages 2 and 3, and at stage 3 with a break."""

    second: Job
    third: Job
    broken: Job


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Trained]:
    folder = tmp_path_factory.mktemp("families")
    data = write_data(folder)
    jobs = {name: _jobs(folder, data, name) for name in FAMILIES}
    runs: list[tuple[Job, int | None]] = []
    for one in jobs.values():
        runs += [(one.second, None), (one.third, None), (one.broken, STEPS // 2), (one.broken, None)]
    run_ranks(2, _run_all, runs)
    return jobs


def _jobs(folder: Path, data: Path, name: str) -> Trained:
    def job(label: str, stage: int) -> Job:
        fields = {**recipe_fields(name, data, STEPS), "name": f"{name}-{label}", "zero": {"stage": stage}}
        return tiny_job(parse_recipe({**fields, "cluster": {"workers": 2}}), folder / "runs", world_size=2)

    return Trained(job("second", 2), job("third", 3), job("broken", 3))


def _run_all(rank: Rank, runs: list[tuple[Job, int | None]]) -> None:
    for job, until in runs:
        run_rank(Job(job.recipe, job.plan, job.folder, until), rank)


def _curve(job: Job) -> list[float]:
    by_step = {line["step"]: line["train/loss"] for line in read_metrics(job.folder.metrics) if "train/loss" in line}
    return [by_step[step] for step in sorted(by_step)]


@pytest.mark.parametrize("name", FAMILIES)
def test_stages_agree_and_a_break_changes_nothing(trained: Mapping[str, Trained], name: str) -> None:
    one = trained[name]
    curves = [_curve(job) for job in (one.second, one.third)]
    assert len(curves[0]) == STEPS
    assert curves[0][-1] < curves[0][0]
    assert all(math.isclose(a, b, rel_tol=1e-5) for a, b in zip(*curves, strict=True)), curves
    assert _curve(one.broken) == curves[1]
    ours, theirs = (load_file(job.folder.path / "final" / "model.safetensors") for job in (one.broken, one.third))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_exported_model_measures_and_answers_the_same(
    trained: Mapping[str, Trained], name: str, tmp_path: Path
) -> None:
    job = trained[name].third
    loaded = load_trained(job.folder)
    last = [line for line in read_metrics(job.folder.metrics) if "eval/validation/loss" in line][-1]
    assert math.isclose(float(str(loaded.evaluate()["loss"])), last["eval/validation/loss"], rel_tol=1e-5)
    picture = tmp_path / "red.png"
    picture.write_bytes(image("red", "left", 120))
    (ours,) = loaded.sample(["Colour?"], max_new_tokens=6, temperature=0.0, seed=0, pictures=[picture])
    final = job.folder.path / "final"
    model = AutoModelForImageTextToText.from_pretrained(final).eval()
    # AutoProcessor reads the processors of video too only where torchvision is; ours is the same without that part.
    processor = loaded.processor if name == "qwen2_vl" else AutoProcessor.from_pretrained(final, backend="pil")
    content = [{"type": "image", "path": str(picture)}, {"type": "text", "text": "Colour?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        written = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    text = processor.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert ours == text
    assert ours
