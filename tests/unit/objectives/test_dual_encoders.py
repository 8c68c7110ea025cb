"""Every dual encoder of images and texts: the loss of its own forward pass, and rows made for it."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForZeroShotImageClassification, Siglip2ImageProcessorPil

from shardyard.data.formats import FormatInputs, captions
from shardyard.data.media.processors import make_processor
from shardyard.data.tokenizers.tokenizer import load_tokenizer, vocabulary_size
from shardyard.errors import DataError
from shardyard.models.build import architecture_config, special_token_ids
from shardyard.models.initialise import initialise
from shardyard.objectives.contrastive.similarity import similarity_of
from shardyard.objectives.inputs import ObjectiveInputs
from shardyard.objectives.make import make_objective
from shardyard.objectives.registry import objective_spec
from shardyard.recipe.loading.load import parse_recipe
from shardyard.recipe.rules.pictures import picture_rules
from support.families.dual_encoders import CONFIGS
from support.objectives.contrastive import image, recipe_fields

ROWS = 4


def inputs_of(family: str, tokenizer: str | None = None) -> FormatInputs:
    fields = recipe_fields(Path())
    fields["model"] = {"family": family, "config": CONFIGS[family], "dropout": 0.0}
    fields["image"] = {}
    recipe = parse_recipe(fields)
    own = load_tokenizer(tokenizer or ("unigram-en-es-8k" if family == "altclip" else "bytes"))
    config = architecture_config(recipe.model, vocabulary=vocabulary_size(own), special_tokens=special_token_ids(own))
    return FormatInputs(recipe.data, own, config, training=False)


@pytest.fixture(params=sorted(CONFIGS))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_family_of_the_objective_is_here() -> None:
    assert objective_spec("contrastive").families == CONFIGS.keys()


def test_the_loss_and_its_gradients_are_those_of_its_own_forward_pass(family: str) -> None:
    torch.manual_seed(0)
    inputs = inputs_of(family)
    model = AutoModelForZeroShotImageClassification.from_config(inputs.model, attn_implementation="eager")
    rows = captions.make(inputs)
    examples = [
        (("red", "left"), "a red square"),
        (("blue", "right"), "blue"),
        (("green", "above"), "a green one, above"),
    ]
    batch = rows.collate(
        [
            rows.row({"image": {"bytes": image(*place, 120), "path": "x.png"}, "text": text}, np.random.default_rng(0))
            for place, text in examples
        ]
    )
    objective, training = make_objective("contrastive", ObjectiveInputs()), model.train()
    theirs = training(**batch, return_loss=True).loss
    theirs.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    ours = objective.measure(training, batch).losses["loss"] / objective.counts(batch)["loss"]
    ours.backward()
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    assert any(name in ("logit_scale", "temperature") for name in expected)
    for name, parameter in model.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], atol=1e-5, rtol=1e-4)


def test_a_text_is_the_same_beside_a_longer_one(family: str) -> None:
    torch.manual_seed(0)
    inputs = inputs_of(family)
    model = AutoModelForZeroShotImageClassification.from_config(inputs.model).eval()
    rows = captions.make(inputs)
    short, long = (
        rows.row({"image": {"bytes": image("red", "left", 120), "path": "x"}, "text": text}, np.random.default_rng(0))
        for text in ("red", "a much longer caption")
    )
    with torch.no_grad():
        model.train()(**rows.collate([short, long]))  # batch normalisation (ALIGN) only then knows how large values are
        model.eval()
        alone, both = model(**rows.collate([short])), model(**rows.collate([short, long]))
    torch.testing.assert_close(both.text_embeds[:1], alone.text_embeds, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(both.text_embeds[0], both.text_embeds[1], atol=1e-3)


def test_pictures_of_any_shape_are_the_patches_of_their_processor() -> None:
    """A wide picture, a tall one and a square, as the processor of SigLIP 2 makes a batch of them."""
    inputs = inputs_of("siglip2")
    noise = np.random.default_rng(1)
    sizes = ((20, 60), (64, 16), (40, 40))
    pictures = [Image.fromarray(noise.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
    rows = captions.make(inputs)
    batch = rows.collate([rows.row({"image": one, "text": "a"}, noise) for one in pictures])
    theirs = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16)(pictures, return_tensors="pt")
    assert all(torch.equal(batch[name], theirs[name].to(batch[name].dtype)) for name in theirs)
    assert [shape.tolist() for shape in batch["spatial_shapes"]] == [[2, 6], [8, 2], [4, 4]]
    exported = make_processor("contrastive", inputs)
    assert (exported.patch_size, exported.max_num_patches) == (8, 16)


def test_a_size_of_pictures_of_any_shape_is_refused() -> None:
    fields = {**recipe_fields(Path("x")), "model": {"family": "siglip2"}, "image": {"size": 32, "erase": 0.1}}
    assert [path for path, _ in picture_rules(parse_recipe(fields))] == [("image", "size"), ("image", "erase")]


def test_siglip_begins_where_its_paper_does() -> None:
    """The rule of transformers zeroes both."""
    model = AutoModelForZeroShotImageClassification.from_config(inputs_of("siglip").model)
    initialise(model, seed=1, gathered=lambda parameters: nullcontext())
    found = similarity_of(model)
    assert found.bias is not None
    assert (float(found.scale.detach()), float(found.bias.detach())) == (pytest.approx(10.0), -10.0)


def test_a_model_that_counts_from_the_padding_needs_a_padding_token() -> None:
    with pytest.raises(DataError, match="altclip counts positions from its padding token"):
        captions.make(inputs_of("altclip", tokenizer="bytes"))
