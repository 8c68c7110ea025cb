"""Recordings longer than the model hears: cut with their text at a segment, left out, or cut alone, as told."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from transformers import AutoConfig

from shardyard.data.formats import FormatInputs, make_rows
from shardyard.data.media.clipping import segments_of, text_until
from shardyard.data.sources.retry import Retry
from shardyard.data.sources.sources import open_for
from shardyard.data.stream.reader import ShareReader, share_of
from shardyard.data.stream.shuffle import Windows
from shardyard.errors import UnusableRowError
from shardyard.objectives.registry import objective_spec
from shardyard.recipe.earlier import complete
from shardyard.recipe.schema import Audio, Source
from support.data_cases import SEPARATOR, bytes_tokenizer, data

RATE, SECONDS = 16_000, 2
WHISPER = AutoConfig.for_model(
    "whisper", max_source_positions=50 * SECONDS, num_mel_bins=16, decoder_start_token_id=7, pad_token_id=0
)
CTC = AutoConfig.for_model("wav2vec2", pad_token_id=0, num_labels=4)
SPECTROGRAM = AutoConfig.for_model("audio-spectrogram-transformer", num_labels=4, max_length=100, num_mel_bins=16)
TEXT = "One, two.  Three!"
SEGMENTS = [{"start": 0.0, "end": 0.8, "text": " One,"}, {"end": 1.9, "text": " two."}, {"end": 2.4, "text": " Three!"}]


def wav(seconds: float) -> bytes:
    file = io.BytesIO()
    samples = np.random.default_rng(3).uniform(-0.3, 0.3, round(seconds * RATE)).astype(np.float32)
    soundfile.write(file, samples, RATE, format="WAV", subtype="FLOAT")
    return file.getvalue()


def rows_of(objective: str, audio: Audio | None = None, *, training: bool = False) -> Any:
    model = {"speech_to_text": WHISPER, "speech_ctc": CTC, "audio_classification": SPECTROGRAM}[objective]
    audio = audio or Audio(seconds=SECONDS)
    recipe = data([Source(path="clips.parquet")], sequence_length=64)
    return make_rows(objective, FormatInputs(recipe, bytes_tokenizer(), model, audio=audio, training=training))


def spoken(row: Any) -> str:
    return bytes(label for label in row["labels"].tolist() if label != SEPARATOR).decode()


def example(seconds: float = 2.4, **more: Any) -> dict[str, Any]:
    return {"audio": wav(seconds), "text": TEXT, "segments": SEGMENTS, "label": 1, **more}


@pytest.mark.parametrize("objective", ["speech_to_text", "speech_ctc"])
def test_a_long_recording_ends_with_the_last_segment_that_fits(objective: str) -> None:
    rows = rows_of(objective)
    row = rows.row([example()], np.random.default_rng(0))
    assert spoken(row) == "One, two."
    assert rows.num_cut == 25, "half a second, 20 ms each"
    short = rows_of(objective).row([example(1.9, text="One, two.")], np.random.default_rng(0))
    for name in row.keys() & short.keys():
        np.testing.assert_array_equal(row[name], short[name])
    assert spoken(rows_of(objective).row([example(2.0)], np.random.default_rng(0))) == TEXT


@pytest.mark.parametrize("objective", ["speech_to_text", "speech_ctc"])
@pytest.mark.parametrize("segments", [None, [], [{"end": 2.2, "text": TEXT}], "One, two.", [{"end": 1.0}], [7]])
def test_without_a_segment_that_fits_the_row_is_unusable(objective: str, segments: Any) -> None:
    with pytest.raises(UnusableRowError, match=r"longer than 2 seconds: it has 2\.4, and audio\.too_long keeps no"):
        rows_of(objective).row([example(segments=segments)], np.random.default_rng(0))


def test_the_policy_of_the_recipe_is_followed() -> None:
    with pytest.raises(UnusableRowError, match="longer than 2 seconds"):
        rows_of("speech_to_text", Audio(too_long="unusable")).row([example()], np.random.default_rng(0))
    rows = rows_of("speech_to_text", Audio(too_long="beginning"))
    whole = rows.row([example()], np.random.default_rng(0))
    assert spoken(whole) == TEXT
    assert rows.num_cut == 20
    cut = rows.row([example(2.0)], np.random.default_rng(0))
    np.testing.assert_array_equal(whole["input_features"], cut["input_features"])


def test_classes_are_of_the_whole_recording_unless_told_otherwise() -> None:
    with pytest.raises(UnusableRowError, match=r"longer than 0\.98 seconds"):
        rows_of("audio_classification").row(example(), np.random.default_rng(0))
    rows = rows_of("audio_classification", Audio(too_long="beginning"))
    cut, short = (rows.row(example(seconds), np.random.default_rng(0)) for seconds in (2.4, 0.98))
    np.testing.assert_array_equal(cut["input_values"], short["input_values"])
    assert rows.num_cut == 71


def test_random_changes_make_no_recording_too_long() -> None:
    settings = Audio(speed=0.2, shift=0.5)
    rows = rows_of("speech_to_text", settings, training=True)
    for seed in range(20):
        assert spoken(rows.row([example(2.0)], np.random.default_rng(seed))) == TEXT
        assert spoken(rows.row([example()], np.random.default_rng(seed))) in ("One,", "One, two.")
    earlier = rows_of("speech_ctc", settings.model_copy(update={"too_long": "unusable", "seconds": 2.0}), training=True)
    with pytest.raises(UnusableRowError, match="longer than 2 seconds"):
        [earlier.row([example(2.0)], np.random.default_rng(seed)) for seed in range(20)]


def test_segments_are_read_as_they_are_written() -> None:
    whisper = [{"id": 0, "start": 0.0, "end": 1.5, "text": " a"}]
    pipeline = [{"timestamp": (0.0, 1.5), "text": " a"}]
    whisperx = [{"word": "a", "start": 0.0, "end": 1.5, "score": 0.9}]
    ends = [[(one.text.strip(), one.end) for one in segments_of(value)] for value in (whisper, pipeline, whisperx)]
    assert ends == [[("a", 1.5)]] * 3
    assert segments_of([{"end": 2.0, "text": "b"}, {"end": 1.0, "text": "a"}]) == []
    assert segments_of([{"timestamp": (0.0, None), "text": "b"}]) == []


@pytest.mark.parametrize(
    ("text", "spoken", "expected"),
    [
        ("One,  two. three", ["One,", "two."], "One,  two."),
        ("今日は 晴れ", ["今日", "は"], "今日は"),
        ("ONE TWO THREE", [" one", " two"], "one two"),
        ("ONE TWO THREE", ["one", "two"], "one two"),
    ],
)
def test_a_text_is_cut_in_its_own_spelling(text: str, spoken: list[str], expected: str) -> None:
    segments = segments_of([{"end": float(end), "text": part} for end, part in enumerate([*spoken, "rest"])])
    assert text_until(text, segments, len(spoken) - 1) == expected


def parquet(path: Path, segments: list[Any]) -> Source:
    rows = [{"audio": {"bytes": wav(2.4), "path": None}, "text": TEXT, "segments": some} for some in segments]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return Source(path=str(path))


def test_the_column_of_segments_is_found_and_rows_without_are_left_out_and_named(tmp_path: Path) -> None:
    source = parquet(tmp_path / "clips.parquet", [SEGMENTS, None])
    opened = open_for(objective_spec("speech_to_text"), source, training=True)
    assert opened.columns == {"audio": "audio", "text": "text", "segments": "segments"}
    reader = ShareReader(share_of(opened, 0, 1), Retry())
    stream = rows_of("speech_to_text").stream(Windows(reader, (0, 0, 0), 1, repeat=False))
    assert spoken(stream.next_row()) == "One, two."
    assert stream.next_row() is None
    (named,) = reader.left_out.named
    assert named.startswith("clips.parquet, row 2: recording longer than 2 seconds")


def test_a_column_of_that_name_with_other_things_is_not_read(tmp_path: Path) -> None:
    opened = open_for(objective_spec("speech_ctc"), parquet(tmp_path / "a.parquet", [3, 4]), training=True)
    assert opened.columns == {"audio": "audio", "text": "text"}


def test_runs_of_earlier_versions_keep_their_rows() -> None:
    for family, expected in (("whisper", "beginning"), ("wav2vec2", "unusable")):
        fields: dict[str, Any] = {"model": {"family": family}, "audio": {"seconds": 30.0}}
        complete(fields)
        assert fields["audio"]["too_long"] == expected
        assert fields["audio"]["resampler"] == "fft"
