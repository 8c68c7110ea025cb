"""CLAP: rows of its own processor, the loss of its paper from the logits of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModel, AutoProcessor

from shardyard.data.exported import exported_tokenizer
from shardyard.data.media.audio import read_audio
from shardyard.data.media.processors import make_processor
from shardyard.engine.components import Components, make_components
from shardyard.errors import DataError, UnusableRowError
from shardyard.objectives.audio_contrastive import rows as descriptions
from shardyard.recipe.loading.load import parse_recipe
from support.families.sound import recording
from support.objectives.audio_contrastive import recipe_fields

TEXTS = ("abca", "dd", "cab")
GENERATOR = np.random.default_rng(0)


def components(**audio: Any) -> Components:
    fields = recipe_fields(Path())
    fields["audio"] = {"seconds": 1.0}
    fields["model"]["config"] = {
        **fields["model"]["config"],
        "audio_config": {**fields["model"]["config"]["audio_config"], **audio},
    }
    return make_components(parse_recipe(fields))


def batch_of(made: Components) -> dict[str, torch.Tensor]:
    rows = descriptions.make(made.format_inputs)
    return rows.collate([rows.row({"audio": recording(text), "text": text}, GENERATOR) for text in TEXTS])


def test_a_batch_is_what_the_exported_processor_makes_of_it(tmp_path: Path) -> None:
    made = components()
    made.config.save_pretrained(tmp_path)
    exported_tokenizer(made.tokenizer, "audio_contrastive").save_pretrained(tmp_path)
    make_processor("audio_contrastive", made.format_inputs).save_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert type(processor).__name__ == "ClapProcessor"
    heard = [read_audio(recording(text), 48_000, "soxr") for text in TEXTS]
    theirs = processor.feature_extractor(heard, sampling_rate=48_000, return_tensors="pt")
    texts = processor.tokenizer(list(TEXTS), padding=True, return_tensors="pt")
    ours = batch_of(made)
    torch.testing.assert_close(ours["input_features"], theirs["input_features"].float(), atol=1e-5, rtol=0)
    for name in ("input_ids", "attention_mask"):
        torch.testing.assert_close(ours[name], texts[name])
    assert ours.keys() == {"input_features", "input_ids", "attention_mask"}


def test_the_loss_has_both_directions_and_that_of_transformers_one_twice() -> None:
    made = components()
    batch = batch_of(made)
    torch.manual_seed(0)
    model = AutoModel.from_config(made.config).train()
    with torch.no_grad():
        model.logit_scale_t.add_(0.5)  # so that both scales count
    theirs = model(**batch, return_loss=True)
    own = torch.arange(len(TEXTS))
    expected = (cross_entropy(theirs.logits_per_audio, own) + cross_entropy(theirs.logits_per_text, own)) / 2
    ours = made.objective.measure(model, batch).losses["loss"] / made.objective.counts(batch)["loss"]
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    twice = (cross_entropy(theirs.logits_per_audio.T, own) + cross_entropy(theirs.logits_per_text, own)) / 2
    torch.testing.assert_close(theirs.loss, twice)
    ours.backward()  # type: ignore[no-untyped-call]
    assert model.logit_scale_a.grad
    assert model.logit_scale_t.grad


def test_an_evaluation_names_both_directions() -> None:
    made = components()
    torch.manual_seed(0)
    model = AutoModel.from_config(made.config).eval()
    with torch.no_grad():
        scores = made.objective.score(made.objective.collect(model, batch_of(made), synchronised=False))
    assert scores["audio_to_text_recall_at_5"] == scores["text_to_audio_recall_at_5"] == 1.0
    assert scores["loss"] > 0


def test_what_clap_cannot_read_is_told() -> None:
    rows = descriptions.make(components().format_inputs)
    with pytest.raises(UnusableRowError, match="longer than 1 seconds"):
        rows.row({"audio": recording("abcdabcdabcd"), "text": "a"}, GENERATOR)
    with pytest.raises(DataError, match="enable_fusion makes CLAP read random parts"):
        components(enable_fusion=True)


def test_masks_fall_on_frames_and_bins() -> None:
    fields = recipe_fields(Path())
    fields["audio"] = {"seconds": 1.0, "time_masks": 2, "time_mask_frames": 5, "frequency_masks": 1}
    rows = descriptions.make(make_components(parse_recipe(fields)).format_inputs)
    plain = descriptions.make(components().format_inputs)
    example: Any = {"audio": recording("abcd"), "text": "a"}
    masked = rows.row(example, np.random.default_rng(5))["input_features"]
    whole = plain.row(example, np.random.default_rng(5))["input_features"]
    changed = (masked != whole)[0]
    frames, bins = changed.all(1), changed[:40].all(0)
    assert masked.shape == whole.shape
    assert 0 < frames.sum() <= 10 or bins.any()
    assert not changed[~frames][:, ~bins].any()
