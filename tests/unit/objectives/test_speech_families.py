"""Encoder–decoders of speech: rows of the family's own processor, losses of its own forward pass."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor, AutoModelForSpeechSeq2Seq, AutoTokenizer

from shardyard.data.exported import exported_tokenizer
from shardyard.data.formats import speech
from shardyard.data.media.audio import read_audio
from shardyard.data.media.processors import make_processor
from shardyard.engine.components import Components, make_components
from shardyard.errors import UnusableRowError
from shardyard.objectives.registry import objective_spec
from shardyard.recipe.families import families_with_head
from shardyard.recipe.loading.load import parse_recipe
from shardyard.recipe.rules.decoders import decoder_rules
from shardyard.recipe.rules.model import model_rules
from shardyard.recipe.schema import Audio
from support.families.sound import recording
from support.families.speech import CONFIGS, fields_of

GENERATOR = np.random.default_rng(0)
TEXTS = ("abca", "dd")
IGNORED = -100


@pytest.fixture(params=sorted(CONFIGS))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def components(family: str, **config: Any) -> Components:
    return make_components(parse_recipe(fields_of(Path(), family, **config)))


def noisy(text: str) -> dict[str, Any]:
    # A pure tone leaves bands without any sound, which Speech2Text's extractor cannot scale.
    return recording(text, noise=0.02)


def example(text: str) -> Any:
    return [{"audio": noisy(text), "text": text}]


def exported(made: Components, folder: Path) -> tuple[Any, Any]:
    """Feature extractor and tokenizer as they are read from an exported model."""
    made.config.save_pretrained(folder)
    exported_tokenizer(made.tokenizer, "speech_to_text").save_pretrained(folder)
    make_processor("speech_to_text", made.format_inputs).save_pretrained(folder)
    return AutoFeatureExtractor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def test_every_family_of_the_objective_is_here() -> None:
    assert objective_spec("speech_to_text").families == CONFIGS.keys()


def test_rows_and_loss_are_those_of_the_exported_processor_and_model(family: str, tmp_path: Path) -> None:
    made = components(family)
    rows = speech.make(made.format_inputs)
    batch = rows.collate([rows.row(example(text), GENERATOR) for text in TEXTS])
    extractor, tokenizer = exported(made, tmp_path)
    length = {"padding": "max_length", "max_length": rows.listener.longest} if rows.listener.filled else {}
    whole = {"pad_to_multiple_of": rows.listener.whole} if rows.listener.whole > 1 else {}
    heard = extractor(
        [read_audio(noisy(text)) for text in TEXTS],
        sampling_rate=16_000,
        return_tensors="pt",
        **{"padding": True, **length, **whole},
    )
    heard.pop("audio_chunk_index", None)  # of recordings that its extractor cuts into several
    labels = [tokenizer(text_target=text)["input_ids"] for text in TEXTS]
    longest = max(map(len, labels))
    padded = torch.tensor([ids + [IGNORED] * (longest - len(ids)) for ids in labels])
    assert heard.keys() == batch.keys() - {"decoder_input_ids", "labels"}
    for name, value in heard.items():
        torch.testing.assert_close(batch[name].double(), value.double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(batch["labels"], padded)
    torch.manual_seed(0)
    model = AutoModelForSpeechSeq2Seq.from_config(made.config).eval()
    with torch.no_grad():
        theirs = model(**heard, labels=padded, decoder_input_ids=shifted(made.config, padded)).loss
        ours = made.objective.measure(model, batch).losses["loss"] / made.objective.counts(batch)["loss"]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def shifted(config: Any, labels: torch.Tensor) -> torch.Tensor:
    """As every family shifts labels; their own functions insist on a padding token."""
    start = torch.full_like(labels[:, :1], config.decoder_start_token_id)
    moved = torch.cat([start, labels[:, :-1]], 1)
    return moved.masked_fill(moved == IGNORED, config.pad_token_id or 0)


def test_a_row_is_the_same_beside_a_longer_one(family: str) -> None:
    made = components(family)
    rows = speech.make(made.format_inputs)
    short, long = (rows.row(example(text), GENERATOR) for text in ("dd", "abcaab"))
    torch.manual_seed(0)
    model = AutoModelForSpeechSeq2Seq.from_config(made.config).eval()
    with torch.no_grad():
        alone = made.objective.measure(model, rows.collate([short])).losses["loss"]
        other = made.objective.measure(model, rows.collate([long])).losses["loss"]
        both = made.objective.measure(model, rows.collate([short, long])).losses["loss"]
    # Speech2Text and Moonshine's streaming encoder see a position of padding more, as in transformers.
    torch.testing.assert_close(both, alone + other, atol=1e-4, rtol=5e-5)


@pytest.mark.parametrize("seconds", [0.05, 0.3])
def test_silence_is_heard_as_zeros_and_not_as_nothing(seconds: float) -> None:
    """Speech2Text's extractor makes 0 / 0 of it."""
    listener = speech.make(components("speech_to_text").format_inputs).listener
    features = listener.row(np.zeros(int(seconds * 16_000), np.float32), Audio(), None)["input_features"]
    assert features.shape[1] == 16
    assert not features.any()


def test_a_recording_longer_than_the_recipe_allows_is_unusable() -> None:
    rows = speech.make(components("moonshine").format_inputs)
    with pytest.raises(UnusableRowError, match=r"longer than 1 seconds: it has 1\.2"):
        rows.row(example("abcd" * 3), GENERATOR)


def test_silent_rows_have_the_length_of_their_recordings() -> None:
    fields = fields_of(Path(), "speech_to_text")
    fields["data"]["drop_inputs"] = True
    rows = speech.make(make_components(parse_recipe(fields)).format_inputs)
    found = rows.row(example("abc"), GENERATOR)
    assert not found["input_features"].any()
    assert found["attention_mask"].all()


def test_every_other_family_of_the_head_is_refused_with_its_reason() -> None:
    spec = objective_spec("speech_to_text")
    assert spec.families is not None
    others = families_with_head(spec) - spec.families
    assert others == spec.refusals.keys()
    for other in others:
        fields = {**fields_of(Path(), "moonshine"), "model": {"family": other}}
        text = dict(model_rules(parse_recipe(fields)))["model", "family"]
        assert re.match(rf"{other} (writes|is a) .*; speech_to_text trains canary, .*moonshine", text)


def test_only_whisper_spells_in_its_encoder() -> None:
    fields = fields_of(Path(), "moonshine")
    fields["audio"]["ctc"] = 0.3
    assert "moonshine has none of its kind" in dict(decoder_rules(parse_recipe(fields)))["audio", "ctc"]


@pytest.mark.parametrize(
    ("objective", "field", "value"),
    [("audio_classification", "join", 2), ("audio_contrastive", "plain_text", True), ("speech_ctc", "ctc", 0.3)],
)
def test_a_field_of_transcripts_is_refused_where_it_does_nothing(objective: str, field: str, value: float) -> None:
    fields = {**fields_of(Path(), "moonshine"), "objective": objective, "audio": {field: value}}
    found = dict(decoder_rules(parse_recipe(fields)))
    assert found["audio", field] == f"does nothing for {objective}; take it out"


def test_layers_are_not_dropped_and_nothing_is_masked_unless_the_recipe_says_so() -> None:
    config = components("speecht5").config
    assert (config.encoder_layerdrop, config.decoder_layerdrop, config.apply_spec_augment) == (0.0, 0.0, False)
    config = components("seamless_m4t", encoder_layerdrop=0.2).config
    assert (config.speech_encoder_layerdrop, config.encoder_layerdrop) == (0.0, 0.2)
    assert not components("speech-encoder-decoder").config.encoder.apply_spec_augment
