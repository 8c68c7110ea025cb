"""For every objective with pictures or sound: a row is what the exported processor makes of the same file and text."""

from __future__ import annotations

import importlib
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoProcessor, AutoTokenizer

from shardyard.data.exported import exported_tokenizer
from shardyard.data.formats import make_rows
from shardyard.data.media.audio import read_audio
from shardyard.data.media.processors import make_processor
from shardyard.engine.components import Components, make_components
from shardyard.objectives.registry import specs
from shardyard.recipe.loading.load import parse_recipe
from support.families import dual_encoders, sound
from support.families.masked_pictures import CONFIGS as MASKED
from support.families.sound import recording
from support.objectives.masked_image import MAE

TEXT = "a red square"
SPOKEN = "abca"
VIT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
AST = {**VIT, "num_mel_bins": 16, "max_length": 128, "patch_size": 8, "frequency_stride": 8, "time_stride": 8}

# Objective → family → configuration; those of other files of support are complete.
PICTURES: dict[str, dict[str, dict[str, Any]]] = {
    "contrastive": {name: dual_encoders.CONFIGS[name] for name in ("clip", "siglip", "align", "blip")},
    "image_classification": {
        "vit": {**VIT, "image_size": 16, "patch_size": 8},
        "resnet": {**RESNET, "num_channels": 3},
    },
    "masked_image": {"swin": MASKED["swin"], "vit_mae": MAE},
}
SOUND: dict[str, dict[str, dict[str, Any]]] = {
    "speech_ctc": sound.ENCODERS,
    "audio_classification": {**sound.ENCODERS, "audio-spectrogram-transformer": AST},
}
PICTURE_CASES = [(objective, family) for objective, families in PICTURES.items() for family in families]
SOUND_CASES = [(objective, family) for objective, families in SOUND.items() for family in families]
# Objectives whose rows a test of their own compares with the exported processor: test_speech_families,
# test_audio_contrastive, test_pictures_in_text.
ELSEWHERE = {"speech_to_text", "audio_contrastive", "vision_language"}


def test_every_objective_with_pictures_or_sound_is_compared() -> None:
    heard_or_seen = {one.name for one in specs() if {"image", "audio"} & set(one.columns.values())}
    assert heard_or_seen == PICTURES.keys() | SOUND.keys() | ELSEWHERE


def png(mode: str, size: tuple[int, int]) -> bytes:
    generator = np.random.default_rng(3)
    shape = (size[1], size[0]) if mode in ("L", "P") else (size[1], size[0], 3)
    buffer = io.BytesIO()
    Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8), "L" if mode == "P" else mode).convert(mode).save(
        buffer, "PNG"
    )
    return buffer.getvalue()


def components(objective: str, family: str, config: dict[str, Any], **sections: Any) -> Components:
    fields = importlib.import_module(f"support.objectives.{objective}").recipe_fields(Path())
    labels = {"num_labels": 4} if "classification" in objective else {}
    fields["model"] = {"family": family, "config": {**config, **labels}, "dropout": 0.0}
    fields |= sections
    made = make_components(parse_recipe(fields))
    return replace(made, format_inputs=replace(made.format_inputs, training=False))


def export(made: Components, objective: str, folder: Path) -> None:
    made.config.save_pretrained(folder)
    if made.tokenizer is not None:
        exported_tokenizer(made.tokenizer, objective).save_pretrained(folder)
    make_processor(objective, made.format_inputs).save_pretrained(folder)


def row_of(made: Components, objective: str, example: Any) -> dict[str, np.ndarray]:
    rows: Any = make_rows(objective, made.format_inputs)
    piece = rows.pieces([example], np.random.default_rng(0))[0]
    row: dict[str, np.ndarray] = rows.row(piece, np.random.default_rng(0))
    return row


@pytest.mark.parametrize(("objective", "family"), PICTURE_CASES)
def test_pictures_are_those_of_the_exported_processor(objective: str, family: str, tmp_path: Path) -> None:
    config = PICTURES[objective][family]
    colour = config.get("num_channels", 3) == 3
    image = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]} if colour else {"mean": [0.4], "std": [0.2]}
    made = components(objective, family, config, image=image)
    export(made, objective, tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    # The exported processor makes no colour picture grey.
    for mode in ("RGB", "L", "P") if colour else ("L",):
        for size in ((16, 16), (64, 64), (41, 23), (23, 41), (7, 90), (200, 30)):
            content = png(mode, size)
            example = {"image": {"bytes": content, "path": "x.png"}, "text": TEXT, "label": 1}
            ours = row_of(made, objective, example)["pixel_values"]
            theirs = processor(Image.open(io.BytesIO(content)), return_tensors="np")["pixel_values"][0]
            np.testing.assert_allclose(ours, theirs, atol=1e-5, err_msg=f"{mode} {size}")


@pytest.mark.parametrize("family", PICTURES["contrastive"])
def test_captions_are_those_of_the_exported_tokenizer(family: str, tmp_path: Path) -> None:
    made = components("contrastive", family, PICTURES["contrastive"][family], image={})
    export(made, "contrastive", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    row = row_of(made, "contrastive", {"image": {"bytes": png("RGB", (9, 9)), "path": "x"}, "text": TEXT})
    ids = tokenizer(TEXT)["input_ids"]
    if family == "siglip":
        # It reads rows of full length, without a mask; the end token, which the tokenizer has, stands for padding.
        ids += [tokenizer.eos_token_id] * (len(row["input_ids"]) - len(ids))
    assert row["input_ids"].tolist() == ids


@pytest.mark.parametrize(("objective", "family"), SOUND_CASES)
def test_sound_is_that_of_the_exported_extractor(objective: str, family: str, tmp_path: Path) -> None:
    config = SOUND[objective][family] | ({"classifier_proj_size": 8} if family in sound.ENCODERS else {})
    made = components(objective, family, config, audio={"seconds": 1.0})
    export(made, objective, tmp_path)
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path)
    row = row_of(made, objective, {"audio": recording(SPOKEN), "text": SPOKEN, "label": 1})
    heard = extractor(read_audio(recording(SPOKEN)), sampling_rate=16_000, return_tensors="np")
    if "attention_mask" not in row and family in sound.ENCODERS:
        # As a collator of transformers pads; asked to pad itself, the extractor would scale the padding, too.
        heard = extractor.pad(heard, padding="max_length", max_length=16_000, return_tensors="np")
    assert heard.keys() == row.keys() - {"labels", "reference"}
    for name, value in heard.items():
        np.testing.assert_allclose(row[name], value[0], atol=1e-5)
    if objective == "speech_ctc":
        processor = AutoProcessor.from_pretrained(tmp_path)
        assert processor.tokenizer(SPOKEN)["input_ids"] == row["labels"].tolist()
        spelled = [token for token in row["labels"].tolist() for _ in range(2)]
        assert processor.decode(spelled) == SPOKEN
