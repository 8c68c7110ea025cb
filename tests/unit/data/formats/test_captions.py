"""Rows of images with captions, and of questions on images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoModelForZeroShotImageClassification

from shardyard.data.formats import FormatInputs, captions, image_answers
from shardyard.data.stream.packing import IGNORED
from shardyard.data.tokenizers.tokenizer import load_tokenizer, vocabulary_size
from shardyard.errors import DataError
from shardyard.models.build import architecture_config, special_token_ids
from shardyard.recipe import schema
from shardyard.recipe.image_tokens import image_tokens
from support.objectives.contrastive import image, recipe_fields
from support.objectives.vision_language import recipe_fields as question_fields

GENERATOR = np.random.default_rng(0)
SIDE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def context(fields: dict[str, Any], tokenizer_name: str = "bytes", **data: Any) -> FormatInputs:
    tokenizer = load_tokenizer(tokenizer_name)
    config = architecture_config(
        schema.Model(**fields["model"]),
        vocabulary=vocabulary_size(tokenizer),
        special_tokens=special_token_ids(tokenizer),
    )
    section = schema.Data(sequence_length=32, train=[schema.Source(path="x")], **data)
    return FormatInputs(section, tokenizer, config, training=False)


@pytest.fixture(scope="module")
def clip() -> FormatInputs:
    return context(recipe_fields_of("contrastive"))


def recipe_fields_of(objective: str) -> dict[str, Any]:
    return (recipe_fields if objective == "contrastive" else question_fields)(Path())


def example(text: str) -> dict[str, Any]:
    return {"image": {"bytes": image("red", "left", 120), "path": "red.png"}, "text": text}


def test_a_caption_ends_with_the_token_that_the_model_reads_at(clip: FormatInputs) -> None:
    row = captions.make(clip).row(example("red <|endoftext|>"), GENERATOR)
    assert row["pixel_values"].shape == (3, 16, 16)
    assert row["pixel_values"].dtype == np.float32
    end = clip.model.text_config.eos_token_id
    # What a caption quotes is text, so the first end token is the last token.
    assert row["input_ids"].tolist() == [*b"red <|endoftext|>", end]
    assert row["attention_mask"].tolist() == [1] * len(row["input_ids"])


def test_a_long_caption_is_cut_and_counted_but_keeps_its_end(clip: FormatInputs) -> None:
    rows = captions.make(clip)
    row = rows.row(example("x" * 40), GENERATOR)
    assert row["input_ids"].tolist() == [*b"x" * 31, clip.model.text_config.eos_token_id]
    assert rows.num_cut == 9


def test_padding_changes_no_embedding(clip: FormatInputs) -> None:
    torch.manual_seed(0)
    model = AutoModelForZeroShotImageClassification.from_config(clip.model).eval()
    rows = captions.make(clip)
    short, long = (rows.row(example(text), GENERATOR) for text in ("red", "a much longer caption"))
    both = rows.collate([short, long])
    assert both["input_ids"].shape == both["attention_mask"].shape == (2, 22)
    with torch.no_grad():
        alone, padded = model(**rows.collate([short])), model(**both)
    torch.testing.assert_close(padded.text_embeds[:1], alone.text_embeds, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(padded.text_embeds[0], padded.text_embeds[1], atol=1e-3)


def test_augmentation_is_for_training_alone(clip: FormatInputs) -> None:
    image = schema.Image(crop_padding=4)
    rows = captions.make(replace(clip, image=image, training=True))
    still = captions.make(replace(clip, image=image))
    moved = [rows.row(example("red"), np.random.default_rng(seed))["pixel_values"] for seed in (1, 1, 2)]
    assert np.array_equal(moved[0], moved[1])
    assert not np.array_equal(moved[0], moved[2])
    assert np.array_equal(*(still.row(example("red"), np.random.default_rng(s))["pixel_values"] for s in (1, 2)))


def test_a_tokenizer_without_an_end_is_refused() -> None:
    with pytest.raises(DataError, match="no eos token"):
        captions.make(context(recipe_fields_of("contrastive"), "wordpiece-docs-4k"))
    with pytest.raises(DataError, match="no eos token"):
        image_answers.make(context(recipe_fields_of("vision_language"), "wordpiece-docs-4k"))


def test_the_end_token_that_clip_does_not_look_for_is_refused(clip: FormatInputs) -> None:
    fields = recipe_fields_of("contrastive")
    fields["model"]["config"]["text_config"]["eos_token_id"] = 2
    with pytest.raises(DataError, match="the id 2"):
        captions.make(context(fields))


@pytest.fixture(scope="module")
def llava() -> FormatInputs:
    return context(recipe_fields_of("vision_language"))


def question(prompt: str = "Hm?", response: str = "red") -> dict[str, Any]:
    return {"image": image("red", "left", 120), "prompt": prompt, "response": response}


def test_the_targets_are_the_answer_and_its_end(llava: FormatInputs) -> None:
    rows = image_answers.make(replace(llava, data=llava.data.model_copy(update={"sequence_length": 64})))
    row = rows.row(question(), GENERATOR)
    end, image = 256, llava.model.image_token_id
    whole = [end, *b"USER: ", *[image] * 4, *b"\nHm? ASSISTANT: red", end]
    assert image == 257
    assert row["input_ids"].tolist() == whole[:-1]
    kept = row["labels"] != IGNORED
    assert row["labels"][kept].tolist() == [*b" red", end]
    # Shifted: the first target follows the colon.
    assert row["input_ids"][np.argmax(kept)] == ord(":")
    assert rows.num_cut == 0


def test_a_long_answer_is_cut_and_counted(llava: FormatInputs) -> None:
    rows = image_answers.make(llava)
    row = rows.row(question(response="x" * 20), GENERATOR)
    assert len(row["input_ids"]) == len(row["labels"]) == 32
    assert rows.num_cut == 1 + 6 + 4 + len("\nHm? ASSISTANT: ") + 20 + 1 - 33


def test_a_blind_model_is_given_an_empty_image(llava: FormatInputs) -> None:
    blind = replace(llava, data=llava.data.model_copy(update={"drop_inputs": True}))
    seen, unseen = (image_answers.make(one).row(question(), GENERATOR) for one in (llava, blind))
    assert seen["pixel_values"].any()
    assert not unseen["pixel_values"].any()
    assert unseen["input_ids"].tolist() == seen["input_ids"].tolist()


def test_a_row_has_room_for_more_than_the_image(llava: FormatInputs) -> None:
    short = replace(llava, data=llava.data.model_copy(update={"sequence_length": 11}))
    with pytest.raises(DataError, match="an image alone takes 4 tokens"):
        image_answers.make(short)


@pytest.mark.parametrize("strategy", ["default", "full"])
@pytest.mark.parametrize("tower", ["clip_vision_model", "siglip_vision_model", "dinov2"])
def test_an_image_has_as_many_tokens_as_the_model_makes(tower: str, strategy: str) -> None:
    fields = recipe_fields_of("vision_language")["model"]
    side = {name: value for name, value in SIDE.items() if tower != "dinov2" or name != "intermediate_size"}
    fields["config"]["vision_config"] = {**side, "model_type": tower, "image_size": 24, "patch_size": 8}
    fields["config"]["vision_feature_select_strategy"] = strategy
    config = architecture_config(schema.Model(**fields), vocabulary=257, special_tokens={})
    model = AutoModelForImageTextToText.from_config(config).eval()
    with torch.no_grad():
        features = model.get_image_features(
            torch.zeros(1, 3, 24, 24), vision_feature_layer=-2, vision_feature_select_strategy=strategy
        )
    (made,) = features.pooler_output
    assert image_tokens(schema.Image(), config) == config.image_seq_length == len(made)
