"""Tiny encoders of sound, and recordings to hear: tones that are spelled by their pitch."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

RATE = 16_000
PITCHES = {"a": 200.0, "b": 450.0, "c": 900.0, "d": 1800.0}
_BODY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
_WAVES = {
    **_BODY,
    "conv_dim": [8, 8, 16],
    "conv_kernel": [10, 8, 4],
    "conv_stride": [8, 8, 4],
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
ENCODERS: dict[str, dict[str, Any]] = {
    "data2vec-audio": {**_WAVES, "num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 3},
    "hubert": _WAVES,
    "sew": {**_WAVES, "squeeze_factor": 2},
    "sew-d": {**_WAVES, "squeeze_factor": 2, "max_position_embeddings": 64, "position_buckets": 16},
    "unispeech": _WAVES,
    "unispeech-sat": _WAVES,
    "wav2vec2": _WAVES,
    "wav2vec2-bert": {**_BODY, "feature_projection_input_dim": 16, "conv_depthwise_kernel_size": 3},
    "wav2vec2-conformer": {**_WAVES, "conv_depthwise_kernel_size": 3},
    "wavlm": _WAVES,
}


def samples(text: str, seconds: float = 0.1) -> npt.NDArray[np.float32]:
    """A tone for each letter."""
    time = np.arange(int(seconds * RATE)) / RATE
    tones = [np.sin(2 * np.pi * PITCHES[letter] * time) for letter in text]
    return (0.3 * np.concatenate(tones)).astype(np.float32)


def recording(text: str, noise: float = 0.0) -> dict[str, Any]:
    """An example's audio, as WAV; with noise of that loudness."""
    buffer, clear = io.BytesIO(), samples(text)
    hiss = noise * np.random.default_rng(len(text)).standard_normal(len(clear)).astype(np.float32)
    soundfile.write(buffer, clear + hiss, RATE, format="WAV")
    return {"bytes": buffer.getvalue(), "path": f"{text}.wav"}


def write_data(folder: Path) -> Path:
    """Parquet with `audio`, `text` and `label`, its first letter: 64 rows for training, 7 held out."""
    generator = np.random.default_rng(3)
    data = folder / "tones"
    data.mkdir(exist_ok=True)
    texts = ["".join(generator.choice(list(PITCHES), size=generator.integers(2, 5))) for _ in range(71)]
    rows = [{"audio": recording(text), "text": text, "label": "abcd".index(text[0])} for text in texts]
    pq.write_table(pa.Table.from_pylist(rows[7:]), data / "train.parquet")
    pq.write_table(pa.Table.from_pylist(rows[:7]), data / "validation.parquet")
    return data


def fields_of(data: Path, objective: str, family: str, **config: Any) -> dict[str, Any]:
    """An encoder of sound under `speech_ctc` or `audio_classification`."""
    fields = {
        "name": f"tiny-{family}",
        "model": {"family": family, "config": {**ENCODERS[family], **config}, "dropout": 0.0},
        "objective": objective,
        "audio": {"seconds": 1.0},
        "data": {
            "streams": 4,
            "shuffle_window": 16,
            "train": [{"path": str(data / "train.parquet")}],
            "validation": [{"path": str(data / "validation.parquet")}],
        },
        "train": {"steps": 8, "global_batch": 8, "precision": "fp32", "seed": 7},
        "optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1},
        "checkpoint": {"every": 4},
        "evaluate": {"every": 4, "rows": 7},
        "tracking": {"wandb": {"mode": "disabled"}},
    }
    if objective == "speech_ctc":
        fields["tokenizer"] = "bytes"
        fields["data"]["sequence_length"] = 16
    return fields
