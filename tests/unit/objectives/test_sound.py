"""Encoders of sound: rows by the family's own extractor, losses of its own forward pass, decoding by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForAudioClassification, AutoModelForCTC, pipeline

from shardyard.data.formats import FormatInputs
from shardyard.data.media.audio import read_audio
from shardyard.data.media.processors import make_processor
from shardyard.data.stream.rows import collate
from shardyard.data.tokenizers.tokenizer import load_tokenizer, vocabulary_size
from shardyard.engine.inference.recordings import transcripts
from shardyard.errors import DataError, UnusableRowError
from shardyard.models.build import architecture_config, special_token_ids
from shardyard.models.export.export import export_model
from shardyard.objectives.audio_classification import rows as labelled
from shardyard.objectives.inputs import ObjectiveInputs
from shardyard.objectives.make import make_objective
from shardyard.objectives.registry import objective_spec
from shardyard.objectives.speech_ctc import rows as spelled
from shardyard.recipe.loading.load import parse_recipe
from support.families.sound import ENCODERS, fields_of, recording

GENERATOR = np.random.default_rng(0)
TEXTS = ("abca", "dd")


def inputs_of(
    family: str, *, training: bool = True, audio: dict[str, Any] | None = None, **config: Any
) -> FormatInputs:
    fields = fields_of(Path(), "speech_ctc", family, **config)
    fields["audio"] |= audio or {}
    recipe, tokenizer = parse_recipe(fields), load_tokenizer("bytes")
    model = architecture_config(
        recipe.model, vocabulary=vocabulary_size(tokenizer), special_tokens=special_token_ids(tokenizer)
    )
    return FormatInputs(recipe.data, tokenizer, model, audio=recipe.audio, training=training)


def example(text: str) -> dict[str, Any]:
    return {"audio": recording(text), "text": text, "label": 1}


@pytest.fixture(params=sorted(ENCODERS))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_family_of_the_objective_is_here() -> None:
    assert objective_spec("speech_ctc").families == ENCODERS.keys()


def test_a_batch_is_what_the_extractor_makes_of_the_recordings(family: str) -> None:
    rows = spelled.make(inputs_of(family))
    batch = rows.collate([rows.row([example(text)], GENERATOR) for text in TEXTS])
    own = rows.listener.own
    each = [own(read_audio(recording(text)), sampling_rate=16_000) for text in TEXTS]
    flat = [{name: value[0] for name, value in one.items()} for one in each]
    length = {"padding": "max_length", "max_length": 16_000} if rows.listener.filled else {"padding": True}
    theirs = own.pad(flat, return_tensors="pt", **length)
    assert batch.keys() == theirs.keys() | {"labels"}
    for name, value in theirs.items():
        torch.testing.assert_close(batch[name].double(), value.double(), atol=1e-4, rtol=0)


def test_the_loss_and_its_gradients_are_those_of_its_own_forward_pass(family: str) -> None:
    inputs = inputs_of(family, ctc_loss_reduction="sum")
    torch.manual_seed(0)
    model = AutoModelForCTC.from_config(inputs.model, attn_implementation="eager").train()
    rows = spelled.make(inputs)
    batch = rows.collate([rows.row([example(text)], GENERATOR) for text in TEXTS])
    theirs = model(**batch).loss
    theirs.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    objective = make_objective("speech_ctc", ObjectiveInputs(tokenizer=inputs.tokenizer, model=inputs.model))
    ours = objective.measure(model, batch).losses["loss"]
    assert objective.counts(batch) == {"loss": 6}
    ours.backward()
    assert theirs > 1
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)
    for name, parameter in model.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], atol=1e-4, rtol=1e-3)


def test_the_best_tokens_are_merged_and_blanks_left_out() -> None:
    inputs = inputs_of("wav2vec2-bert", training=False)
    rows = spelled.make(inputs)
    batch = rows.collate([rows.row([example(text)], GENERATOR) for text in TEXTS])
    blank = inputs.model.pad_token_id
    assert blank == inputs.text_tokenizer.eos_token_id
    best = torch.tensor([[97, 97, blank, 97, 98, 98, blank, blank], [100, blank, 100, 100, 120, 120, 120, 120]])

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, **_: Any) -> Any:
            return type("Output", (), {"logits": torch.nn.functional.one_hot(best, blank + 1).float()})()

        def _get_feat_extract_output_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
            return torch.tensor([8, 4])

    objective = make_objective("speech_ctc", ObjectiveInputs(tokenizer=inputs.tokenizer, model=inputs.model))
    collected = objective.collect(Model(), batch, synchronised=False)
    assert collected == [("aab", "abca"), ("dd", "dd")]
    scores = objective.score(collected)
    assert scores["character_error_rate"] == 0.5  # three edits of six letters
    assert scores["word_error_rate"] == 0.5


@pytest.mark.parametrize("family", ["wav2vec2", "wav2vec2-bert"])
def test_recordings_can_be_silenced_as_a_baseline(family: str) -> None:
    inputs = inputs_of(family)
    rows = spelled.make(replace(inputs, data=inputs.data.model_copy(update={"drop_inputs": True})))
    silent, heard = (made.row([example("abca")], GENERATOR) for made in (rows, spelled.make(inputs)))
    (name,) = silent.keys() & {"input_values", "input_features"}
    assert heard[name].any()
    assert silent[name].shape == heard[name].shape
    assert not silent[name].any()
    assert silent["labels"].tolist() == heard["labels"].tolist()


def test_what_cannot_be_learned_is_an_unusable_row() -> None:
    rows = spelled.make(inputs_of("wav2vec2"))
    with pytest.raises(UnusableRowError, match=r"longer than 1 seconds: it has 1\.2"):
        rows.row([example("abcd" * 3)], GENERATOR)
    with pytest.raises(UnusableRowError, match="without a text"):
        rows.row([{**example("ab"), "text": ""}], GENERATOR)
    with pytest.raises(UnusableRowError, match=r"text longer than data\.sequence_length: 17 tokens of 16"):
        rows.row([{**example("ab"), "text": "x" * 17}], GENERATOR)


def test_samples_have_no_frequencies_to_mask() -> None:
    with pytest.raises(DataError, match="wav2vec2 reads samples and not frequencies"):
        spelled.make(inputs_of("wav2vec2", audio={"frequency_masks": 1}))


def test_masks_in_time_are_of_samples_and_repeat_with_the_generator() -> None:
    rows = spelled.make(inputs_of("wav2vec2", audio={"time_masks": 3, "time_mask_frames": 10}))
    first, again, other = (rows.row([example("abc")], np.random.default_rng(seed)) for seed in (1, 1, 2))
    plain = spelled.make(inputs_of("wav2vec2")).row([example("abc")], np.random.default_rng(1))
    assert np.array_equal(first["input_values"], again["input_values"])
    assert not np.array_equal(first["input_values"], other["input_values"])
    changed = first["input_values"] != plain["input_values"]
    assert 0 < changed.sum() < len(changed)
    assert (first["input_values"][changed] == 0).all()


@pytest.mark.parametrize("name", ["wav2vec2", "wav2vec2-bert"])
def test_a_classifier_of_recordings_has_the_loss_of_transformers(name: str) -> None:
    inputs = inputs_of(name, num_labels=4, classifier_proj_size=8)
    torch.manual_seed(0)
    model = AutoModelForAudioClassification.from_config(inputs.model).eval()
    rows = labelled.make(inputs)
    batch = rows.collate([rows.row(example(text), GENERATOR) for text in TEXTS])  # type: ignore[arg-type]
    theirs = model(**batch).loss
    ours = make_objective("audio_classification", ObjectiveInputs()).measure(model, batch).losses["loss"] / 2
    torch.testing.assert_close(ours, theirs)
    with pytest.raises(UnusableRowError, match="it has 1 classes, 0 to 0: the label is 1"):
        labelled.make(inputs_of(name, num_labels=1)).row(example("ab"), GENERATOR)  # type: ignore[arg-type]


def test_rows_of_different_lengths_are_padded_by_name() -> None:
    rows = spelled.make(inputs_of("wav2vec2-bert"))
    batch = collate([rows.row([example(text)], GENERATOR) for text in TEXTS], rows.padding)
    assert batch["labels"].tolist()[1] == [100, 100, -100, -100]
    assert batch["attention_mask"].sum(1).tolist()[0] > batch["attention_mask"].sum(1).tolist()[1]


@pytest.mark.parametrize("name", ["wav2vec2", "wav2vec2-bert"])
def test_a_pipeline_on_the_export_reads_what_an_evaluation_reads(name: str, tmp_path: Path) -> None:
    inputs = inputs_of(name, training=False)
    torch.manual_seed(1)
    model = AutoModelForCTC.from_config(inputs.model).eval()
    model.lm_head.weight.data *= 20  # so that positions differ
    tokenizer = inputs.text_tokenizer
    written = export_model(
        tmp_path / "final",
        config=inputs.model,
        weights=model.state_dict(),
        tokenizer=tokenizer,
        card="",
        objective="speech_ctc",
        processor=make_processor("speech_ctc", inputs),
    )
    # A recording of the longest length is the same with and without padding.
    text = "abcdabcdab"
    rows = spelled.make(inputs)
    batch = rows.collate([rows.row([example(text)], GENERATOR)])
    objective = make_objective("speech_ctc", ObjectiveInputs(tokenizer=tokenizer, model=inputs.model))
    with torch.no_grad():
        ((ours, _),) = objective.collect(model, batch, synchronised=False)
    heard = read_audio(recording(text))
    theirs = pipeline("automatic-speech-recognition", str(written))({"raw": heard, "sampling_rate": 16_000})
    assert len(ours) > 2
    assert theirs["text"] == ours
    (tmp_path / "spoken.wav").write_bytes(recording(text)["bytes"])
    recipe = parse_recipe(fields_of(Path(), "speech_ctc", name))
    heard_in_file = transcripts(recipe, model, tokenizer, [str(tmp_path / "spoken.wav")], torch.device("cpu"))
    assert heard_in_file == [ours]


def test_masks_of_frames_blank_frames_and_bins_whatever_their_number() -> None:
    """Also where there are as many frames as bins."""
    settings = {"time_masks": 3, "time_mask_frames": 4, "frequency_masks": 3, "frequency_mask_bins": 3}
    rows = spelled.make(inputs_of("wav2vec2-bert", audio=settings))
    plain = spelled.make(inputs_of("wav2vec2-bert"))
    samples = read_audio(recording("abcd"))[: 16 * 160 + 400]
    for count in (len(samples), len(samples) + 160 * 9):
        heard = np.resize(samples, count)
        masked = rows.heard(heard, np.random.default_rng(5))["input_features"]
        whole = plain.heard(heard, np.random.default_rng(5))["input_features"]
        changed = masked != whole
        frames, bins = changed.all(1), changed.all(0)
        assert 0 < frames.sum() <= 12
        assert 0 < bins.sum() <= 9
        assert not changed[~frames][:, ~bins].any()
