"""Encoder–decoders of speech train the same at ZeRO stages 2 and 3, resume to the bit, and write after export what an
evaluation writes: by `generate` and by a pipeline of transformers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor, pipeline

from shardyard.data.formats import speech
from shardyard.data.media.audio import read_audio
from shardyard.engine.components import make_components
from shardyard.engine.inference.load import Trained, load_trained
from shardyard.engine.run import Job, run_rank
from shardyard.engine.world import Rank
from shardyard.errors import UsageError
from shardyard.recipe.loading.load import parse_recipe
from shardyard.tracking.run.folder import read_metrics
from support.families.sound import recording, write_data
from support.families.speech import fields_of
from support.objectives.audio_contrastive import recipe_fields as clap_fields
from support.ranks import run_ranks
from support.tiny import tiny_job
from support.tokenizers import own as own_tokenizers

pytestmark = pytest.mark.slow

# Samples, frames of features, and Whisper with its own tokenizer and its own `generate`.
FAMILIES = ("moonshine", "speech_to_text", "whisper")
# A dual encoder of sound and text, whose batch normalisation depends on the number of ranks.
CLAP = "clap"
STAGES = (2, 3)
# A recording that fills a row, which is the same with and without padding.
LONGEST = "abcdabcdab"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Mapping[int, Job]]:
    """Stage 2 with a break and stage 3 without, for each family."""
    folder = tmp_path_factory.mktemp("speech")
    data = write_data(folder)
    jobs = {name: {stage: _job(folder, data, name, stage) for stage in STAGES} for name in (*FAMILIES, CLAP)}
    run_ranks(1, _run_all, [run for one in jobs.values() for run in ((one[2], 1), (one[2], None), (one[3], None))])
    return jobs


def _job(folder: Path, data: Path, name: str, stage: int) -> Job:
    fields = fields_of(data, name) if name in FAMILIES else clap_fields(data)
    fields |= {"train": {**fields["train"], "steps": 2}, "checkpoint": {"every": 1}}
    fields = {**fields, "name": f"{name}-{stage}", "zero": {"stage": stage}}
    if name == "whisper":
        own_tokenizers.whisper().save_pretrained(folder / "tokenizer")
        fields["tokenizer"] = str(folder / "tokenizer")
        fields["data"] |= {"target_language": "en", "task": "transcribe"}
    return tiny_job(parse_recipe(fields), folder / "runs")


def _run_all(rank: Rank, runs: list[tuple[Job, int | None]]) -> None:
    for job, until in runs:
        run_rank(Job(job.recipe, job.plan, job.folder, until), rank)


def _curve(job: Job) -> list[float]:
    by_step = {line["step"]: line["train/loss"] for line in read_metrics(job.folder.metrics) if "train/loss" in line}
    return [by_step[step] for step in sorted(by_step)]


@pytest.mark.parametrize("name", [*FAMILIES, CLAP])
def test_stages_agree_and_a_break_changes_nothing(trained: Mapping[str, Mapping[int, Job]], name: str) -> None:
    curves = {stage: _curve(job) for stage, job in trained[name].items()}
    assert len(curves[2]) == 2
    assert curves[2][0] != curves[2][1]
    assert all(math.isclose(a, b, rel_tol=1e-5) for a, b in zip(curves[2], curves[3], strict=True)), curves
    ours, theirs = (load_file(job.folder.path / "final" / "model.safetensors") for job in trained[name].values())
    assert ours.keys() == theirs.keys()
    for key, weight in ours.items():
        torch.testing.assert_close(weight, theirs[key], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_exported_model_measures_and_writes_the_same(
    trained: Mapping[str, Mapping[int, Job]], name: str, tmp_path: Path
) -> None:
    job = trained[name][2]
    final = job.folder.path / "final"
    loaded = load_trained(job.folder)
    last = [line for line in read_metrics(job.folder.metrics) if "eval/validation/loss" in line][-1]
    assert math.isclose(float(str(loaded.evaluate()["loss"])), last["eval/validation/loss"], rel_tol=1e-5)
    model, about = AutoModelForSpeechSeq2Seq.from_pretrained(final, output_loading_info=True)
    assert not about["missing_keys"]
    assert not about["unexpected_keys"]
    written = _written(loaded, LONGEST)
    file = tmp_path / "spoken.wav"
    file.write_bytes(recording(LONGEST, noise=0.02)["bytes"])
    assert loaded.sample([str(file)], max_new_tokens=1, temperature=0.0, seed=0) == [written]
    with pytest.raises(UsageError, match=r"writes what it hears: .* none at 'hello'"):
        loaded.sample(["hello"], max_new_tokens=1, temperature=0.0, seed=0)
    processor = AutoProcessor.from_pretrained(final)
    heard = _processed(processor, LONGEST)
    with torch.no_grad():
        ids = model.eval().generate(**heard, max_new_tokens=12, do_sample=False)
    assert processor.batch_decode(ids, skip_special_tokens=True) == [written]
    read = pipeline("automatic-speech-recognition", str(final))
    raw = {"raw": _samples(LONGEST), "sampling_rate": 16_000}
    assert read(raw, generate_kwargs={"max_new_tokens": 12, "num_beams": 1})["text"] == written


def test_an_exported_clap_measures_the_same(trained: Mapping[str, Mapping[int, Job]]) -> None:
    job = trained[CLAP][2]
    last = [line for line in read_metrics(job.folder.metrics) if "eval/validation/loss" in line][-1]
    measured = load_trained(job.folder).evaluate()
    assert math.isclose(float(str(measured["loss"])), last["eval/validation/loss"], rel_tol=1e-5)
    find = pipeline("zero-shot-audio-classification", str(job.folder.path / "final"))
    found = find(
        read_audio(recording(LONGEST), 48_000, "soxr"), candidate_labels=["abcd", "dd"], hypothesis_template="{}"
    )
    assert {one["label"] for one in found} == {"abcd", "dd"}


def _samples(text: str) -> Any:
    return read_audio(recording(text, noise=0.02))


def _written(loaded: Trained, text: str) -> str:
    """What an evaluation decodes."""
    made = make_components(loaded.recipe, tokenizer=loaded.tokenizer, config=loaded.model.config)
    rows = speech.make(replace(made.format_inputs, training=False))
    example: Any = [{"audio": recording(text, noise=0.02), "text": text}]
    batch = rows.collate([rows.row(example, np.random.default_rng(0))])
    ((decoded, _),) = made.objective.collect(loaded.model, batch, synchronised=False)
    return str(decoded)


def _processed(processor: Any, text: str) -> Mapping[str, torch.Tensor]:
    made = processor(audio=_samples(text), sampling_rate=16_000, return_tensors="pt")
    return {name: value for name, value in made.items() if name in ("input_features", "input_values", "attention_mask")}
