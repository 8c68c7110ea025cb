"""Recordings: decoding, resampling, the features of Whisper's extractor, augmentation, rows."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from transformers import AutoConfig, AutoFeatureExtractor, WhisperFeatureExtractor

from shardyard.data.formats import FormatInputs, make_rows
from shardyard.data.formats.speech import Speech
from shardyard.data.media import audio
from shardyard.data.media.processors import make_processor
from shardyard.errors import DataError
from shardyard.recipe.schema import Audio, Source
from support.data_cases import SEPARATOR, bytes_tokenizer, data

SECONDS, BINS = 2, 16


def whisper(**config: Any) -> Any:
    fields = {"max_source_positions": 50 * SECONDS, "num_mel_bins": BINS, "decoder_start_token_id": 7}
    return AutoConfig.for_model("whisper", **(fields | config))


def speech(audio: Audio | None = None, *, training: bool = False, **options: Any) -> Speech:
    recipe = data([Source(path="clips.parquet")], **options)
    rows = make_rows(
        "speech_to_text",
        FormatInputs(recipe, bytes_tokenizer(), whisper(), audio=audio or Audio(), training=training),
    )
    assert isinstance(rows, Speech)
    return rows


def sine(hertz: float, rate: int, seconds: float = 1.0) -> npt.NDArray[np.float32]:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


def noise(seconds: float, rate: int = audio.RATE) -> npt.NDArray[np.float32]:
    return np.random.default_rng(3).uniform(-0.3, 0.3, round(seconds * rate)).astype(np.float32)


def wav(samples: npt.NDArray[np.float32], rate: int = audio.RATE) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format="WAV", subtype="FLOAT")
    return stream.getvalue()


def test_bytes_paths_and_plain_bytes_are_read_alike(tmp_path: Path) -> None:
    content = wav(noise(0.1))
    (tmp_path / "clip.wav").write_bytes(content)
    values = (content, {"bytes": content, "path": "gone.wav"}, {"bytes": None, "path": str(tmp_path / "clip.wav")})
    for value in values:
        np.testing.assert_array_equal(audio.read_audio(value), noise(0.1))


def test_channels_are_averaged() -> None:
    left, right = sine(300, audio.RATE), sine(500, audio.RATE)
    np.testing.assert_allclose(audio.read_audio(wav(np.stack([left, right], 1))), (left + right) / 2, atol=1e-7)


@pytest.mark.parametrize("value", [b"no sound", {"bytes": None, "path": "/gone.wav"}, {"bytes": None, "path": None}])
def test_what_is_no_recording_is_told(value: Any) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        audio.read_audio(value)


@pytest.mark.parametrize("how", ["fft", "soxr"])
@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_a_tone_stays_a_tone_at_another_rate(rate: int, how: Any) -> None:
    heard = audio.read_audio(wav(sine(440, rate), rate), how=how)
    assert len(heard) == audio.RATE
    inner = slice(800, -800)
    assert np.abs(heard - sine(440, audio.RATE))[inner].max() < 2e-3


@pytest.mark.parametrize("how", ["fft", "soxr"])
def test_what_the_lower_rate_cannot_hold_is_removed_and_not_mirrored(how: Any) -> None:
    """11 kHz would sound as 5 kHz at 16 kHz."""
    heard = audio.resample(sine(11_000, 44_100), 44_100, audio.RATE, how)
    assert np.abs(heard[800:-800]).max() < 1e-3


@pytest.mark.slow
def test_the_resampler_of_the_recipe_is_used_and_is_that_of_librosa() -> None:
    librosa = pytest.importorskip("librosa")
    clip = noise(0.7, 22_050)
    expected = librosa.resample(clip, orig_sr=22_050, target_sr=audio.RATE, res_type="soxr_hq")
    found = audio.resample(clip, 22_050, audio.RATE, "soxr")
    assert len(found) == len(clip) * audio.RATE // 22_050
    np.testing.assert_allclose(found, expected[: len(found)], atol=1e-6)
    example: Any = {"audio": wav(clip, 22_050), "text": "a"}
    for how in ("soxr", "fft"):
        heard, _ = speech(Audio(resampler=how)).clip(example, np.random.default_rng(0))
        np.testing.assert_array_equal(heard, audio.resample(clip, 22_050, audio.RATE, how))


def test_features_are_those_of_transformers() -> None:
    clip = noise(1.3)
    reference = WhisperFeatureExtractor(feature_size=BINS, chunk_length=SECONDS)
    expected = reference(clip, sampling_rate=16_000, return_tensors="np")["input_features"][0]
    found = speech().row([{"audio": wav(clip), "text": "hi"}], np.random.default_rng(0))
    np.testing.assert_allclose(found["input_features"], expected, atol=1e-6)
    assert found["input_features"].shape == (BINS, 100 * SECONDS)
    assert found["input_features"].dtype == np.float32


def test_the_extractor_is_what_is_exported(tmp_path: Path) -> None:
    context = FormatInputs(data([Source(path="clips.parquet")]), bytes_tokenizer(), whisper())
    make_processor("speech_to_text", context).save_pretrained(tmp_path)
    loaded = AutoFeatureExtractor.from_pretrained(tmp_path)
    clip = noise(0.7)
    expected = speech().row([{"audio": wav(clip), "text": "hi"}], np.random.default_rng(0))["input_features"]
    np.testing.assert_array_equal(loaded(clip, sampling_rate=16_000)["input_features"][0], expected)


def test_a_row_has_the_text_as_target_and_in_evaluation_as_it_is() -> None:
    found = speech(sequence_length=3).row([{"audio": wav(noise(0.2)), "text": "abc"}], np.random.default_rng(0))
    assert found["decoder_input_ids"].tolist() == [7, 97, 98]
    assert found["labels"].tolist() == [97, 98, SEPARATOR]
    assert found["reference"].tobytes() == b"abc"
    trained = speech(training=True).row([{"audio": wav(noise(0.2)), "text": "abc"}], np.random.default_rng(0))
    assert "reference" not in trained


def test_plain_text_is_what_error_rates_compare() -> None:
    clip = {"audio": wav(noise(0.2)), "text": "Press 2, please!"}
    found = speech(Audio(plain_text=True), training=True, sequence_length=40).row(
        [clip, clip], np.random.default_rng(0)
    )
    assert bytes(found["labels"][:-1].tolist()) == b"press 2 please press 2 please"


def test_what_does_not_fit_is_counted() -> None:
    rows = speech(Audio(too_long="beginning"), sequence_length=3)
    rows.row([{"audio": wav(noise(SECONDS + 0.5)), "text": "abcd"}], np.random.default_rng(0))
    assert rows.num_cut == 25 + 2
    whole = speech()
    whole.row([{"audio": wav(noise(SECONDS)), "text": "abcd"}], np.random.default_rng(0))
    assert whole.num_cut == 0


def test_a_blind_model_hears_the_same_of_everything() -> None:
    rows = speech(drop_inputs=True)
    found = [rows.row([{"audio": wav(noise(t)), "text": "a"}], np.random.default_rng(0)) for t in (0.2, 1.0)]
    assert not found[0]["input_features"].any()
    assert not found[1]["input_features"].any()
    assert found[0]["input_features"].shape == (BINS, 100 * SECONDS)


def test_a_fraction_of_a_second_is_refused() -> None:
    with pytest.raises(DataError, match="multiple of 50"):
        audio.feature_extractor(whisper(max_source_positions=120))


AUGMENTED = Audio(shift=0.3, speed=0.1, time_masks=2, time_mask_frames=20, frequency_masks=1, frequency_mask_bins=4)


def test_augmentation_follows_the_generator_and_only_training_has_it() -> None:
    piece = {"audio": wav(noise(1.0)), "text": "a"}

    def features(seed: int, *, training: bool = True, audio: Audio = AUGMENTED) -> npt.NDArray[Any]:
        return speech(audio, training=training).row([piece], np.random.default_rng(seed))["input_features"]

    np.testing.assert_array_equal(features(1), features(1))
    assert (features(1) != features(2)).any()
    plain = features(1, training=False, audio=Audio())
    np.testing.assert_array_equal(features(1, training=False), plain)
    np.testing.assert_array_equal(features(1, audio=Audio()), plain)


def test_a_shift_puts_silence_before_and_speed_changes_the_length() -> None:
    clip, generator = noise(1.0), np.random.default_rng(0)
    for _ in range(5):
        moved = audio.move(clip, Audio(shift=0.5), generator)
        silence = len(moved) - len(clip)
        assert 0 <= silence <= audio.RATE / 2
        assert not moved[:silence].any()
        np.testing.assert_array_equal(moved[silence:], clip)
    lengths = [len(audio.move(clip, Audio(speed=0.2), generator)) for _ in range(20)]
    assert min(lengths) < 0.95 * len(clip)
    assert max(lengths) > 1.05 * len(clip)
    assert min(lengths) > 0.83 * len(clip)
    assert max(lengths) < 1.26 * len(clip)


def test_a_change_of_speed_changes_the_pitch() -> None:
    tone = sine(400, audio.RATE)
    faster = audio.resample(tone, 125, 100)
    assert len(faster) == pytest.approx(0.8 * len(tone), abs=1)
    np.testing.assert_allclose(faster[800:-800], sine(500, audio.RATE, 0.8)[800 : len(faster) - 800], atol=2e-3)


def test_masks_are_narrow_and_leave_the_silence_alone() -> None:
    features = np.random.default_rng(0).normal(size=(BINS, 200)).astype(np.float32)
    widest = {"time": 0, "frequency": 0}
    for seed in range(60):
        generator = np.random.default_rng(seed)
        changed = audio.mask(features, 80, Audio(time_masks=1, time_mask_frames=15), generator) != features
        assert not changed[:, 80:].any()
        frames = changed.all(axis=0)
        assert changed.any(axis=0).sum() == frames.sum() <= 15
        widest["time"] = max(widest["time"], int(frames.sum()))
        bands = audio.mask(features, 80, Audio(frequency_masks=1, frequency_mask_bins=5), generator) != features
        assert bands.any(axis=1).sum() == bands.all(axis=1).sum() <= 5
        widest["frequency"] = max(widest["frequency"], int(bands.all(axis=1).sum()))
    assert widest == {"time": 15, "frequency": 5}


def test_recordings_follow_each_other_in_training_as_far_as_they_fit() -> None:
    clips = [{"audio": wav(noise(seconds)), "text": text} for seconds, text in ((0.9, "ab"), (0.8, "c"), (0.7, "de"))]

    def row(piece: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
        return speech(training=True, **options).row(piece, np.random.default_rng(0))

    joined = row(clips)
    assert bytes(joined["labels"][:-1].tolist()) == b"ab c", "the third would end after two seconds"
    heard = np.concatenate([noise(0.9), noise(0.8)])
    reference = WhisperFeatureExtractor(feature_size=BINS, chunk_length=SECONDS)
    expected = reference(heard, sampling_rate=16_000, return_tensors="np")["input_features"][0]
    np.testing.assert_allclose(joined["input_features"], expected, atol=1e-6)
    assert bytes(row([clips[0], clips[2]], sequence_length=5)["labels"][:-1].tolist()) == b"ab"


def test_joining_keeps_each_recording_once_at_the_head() -> None:
    examples: list[Any] = [{"text": str(number)} for number in range(40)]
    pieces = speech(Audio(join=3), training=True).pieces(examples, np.random.default_rng(1))
    assert [piece[0] for piece in pieces] == examples
    assert {len(piece) for piece in pieces} == {1, 2, 3}
    for unjoined in (speech(Audio(join=3)), speech(training=True)):
        assert unjoined.pieces(examples, np.random.default_rng(1)) == [[example] for example in examples]
