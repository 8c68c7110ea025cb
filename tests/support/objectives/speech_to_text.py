"""Tiny recordings: each letter is a different tone."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import soundfile

LETTERS = "abcdefgh"


def tones(text: str, rate: int = 8000, seconds: float = 0.1) -> npt.NDArray[np.float32]:
    """Each letter of a text as a tone, [T]."""
    time = np.arange(round(rate * seconds)) / rate
    parts = [0.5 * np.sin(2 * np.pi * (300 + 200 * LETTERS.index(letter)) * time) for letter in text]
    return np.concatenate(parts).astype(np.float32)


def wav(samples: npt.NDArray[np.float32], rate: int = 8000) -> bytes:
    """As the bytes of a WAV file."""
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format="WAV")
    return stream.getvalue()


def write_data(folder: Path) -> Path:
    """A Parquet file of recordings and their letters."""
    generator = random.Random(0)
    texts = ["".join(generator.choices(LETTERS, k=generator.randint(2, 8))) for _ in range(120)]
    rows = {
        "audio": [{"bytes": wav(tones(text)), "path": f"{number}.wav"} for number, text in enumerate(texts)],
        "text": texts,
    }
    path = folder / "tones.parquet"
    datasets.Dataset.from_dict(rows).to_parquet(str(path))
    return path


def recipe_fields(data: Path) -> dict[str, Any]:
    """A Whisper of two layers a side that hears one second, with all augmentation, decoded at evaluation."""
    return {
        "name": "tiny-speech",
        "model": {
            "family": "whisper",
            "config": {
                "d_model": 32,
                "encoder_layers": 2,
                "decoder_layers": 2,
                "encoder_attention_heads": 2,
                "decoder_attention_heads": 2,
                "encoder_ffn_dim": 64,
                "decoder_ffn_dim": 64,
                "num_mel_bins": 16,
                "max_source_positions": 50,
                "max_target_positions": 16,
            },
            "dropout": 0.0,
        },
        "objective": "speech_to_text",
        "audio": {
            "shift": 0.1,
            "speed": 0.1,
            "time_masks": 1,
            "frequency_masks": 1,
            "frequency_mask_bins": 4,
            "join": 2,
            "plain_text": True,
            "ctc": 0.3,
        },
        "data": {
            "sequence_length": 12,
            "streams": 4,
            "shuffle_window": 16,
            "train": [{"path": str(data), "holdout": 0.2}],
        },
        "train": {"steps": 8, "global_batch": 8, "precision": "fp32", "seed": 7},
        "optimizer": {"name": "adamw", "lr": 3e-3, "weight_decay": 0.1},
        "schedule": {"name": "cosine", "warmup": 2},
        "checkpoint": {"every": 4},
        "evaluate": {"every": 4, "rows": 8, "generate_rows": 5},
        "tracking": {"wandb": {"mode": "disabled"}},
    }
