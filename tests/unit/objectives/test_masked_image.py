"""The loss of masked autoencoding is transformers' own, as a sum over hidden patches."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from shardyard.models.build import architecture_config, construct_pretrained
from shardyard.models.initialise import initialise
from shardyard.objectives.base import Totals
from shardyard.objectives.inputs import ObjectiveInputs
from shardyard.objectives.make import make_objective
from shardyard.objectives.masked_image.loss import patches
from shardyard.recipe import schema
from support.objectives.masked_image import MAE


def fresh(**fields: Any) -> ViTMAEForPreTraining:
    model = ViTMAEForPreTraining(ViTMAEConfig(**{**MAE, **fields}))
    initialise(model, seed=3, gathered=lambda _: contextlib.nullcontext())
    return model.eval()


def batch(rows: int = 6, channels: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "pixel_values": torch.randn(rows, channels, 12, 12, generator=generator),
        "noise": torch.rand(rows, 16, generator=generator),
    }


@pytest.mark.parametrize("norm_pix_loss", [False, True])
@pytest.mark.parametrize(("channels", "mask_ratio"), [(1, 0.75), (3, 0.5), (3, 0.7)])
def test_the_mean_is_the_loss_of_transformers(norm_pix_loss: bool, channels: int, mask_ratio: float) -> None:
    model = fresh(norm_pix_loss=norm_pix_loss, num_channels=channels, mask_ratio=mask_ratio)
    objective = make_objective("masked_image", ObjectiveInputs(model=model.config))
    inputs = batch(channels=channels)
    measured, counts = objective.measure(model, inputs), objective.counts(inputs)
    totals = Totals({"loss": float(measured.losses["loss"].detach())}, {}, counts)
    assert totals.mean("loss") == pytest.approx(float(model(**inputs).loss.detach()), rel=1e-5)
    assert counts["loss"] == float(model(**inputs).mask.sum())


def test_a_sum_over_rows_is_the_sum_over_micro_batches() -> None:
    model = fresh()
    objective = make_objective("masked_image", ObjectiveInputs(model=model.config))
    inputs = batch(6)
    whole = objective.measure(model, inputs).losses["loss"]
    parts = [{name: value[cut] for name, value in inputs.items()} for cut in (slice(0, 2), slice(2, 6))]
    torch.testing.assert_close(whole, sum(objective.measure(model, part).losses["loss"] for part in parts))


def test_what_is_seen_does_not_count() -> None:
    """With a prediction that is right for hidden patches alone the loss is 0."""
    model = fresh(norm_pix_loss=False)
    objective = make_objective("masked_image", ObjectiveInputs(model=model.config))
    inputs = batch(2)
    mask = model(**inputs).mask
    wrong = patches(inputs["pixel_values"], 3) + (1 - mask)[..., None] * 100

    def answer(_: Any, __: Any, output: Any) -> Any:
        output.logits = wrong
        return output

    model.register_forward_hook(answer)
    assert float(objective.measure(model, inputs).losses["loss"]) == 0.0


def test_patches_are_those_of_transformers() -> None:
    model = fresh(num_channels=3)
    pixels = batch(channels=3)["pixel_values"]
    assert torch.equal(patches(pixels, 3), model.patchify(pixels))


def test_a_vit_starts_from_its_encoder(tmp_path: Path) -> None:
    model = fresh()
    model.save_pretrained(tmp_path)
    section = schema.Model(family="vit", pretrained=str(tmp_path), config={"num_labels": 7})
    config = architecture_config(section, vocabulary=None)
    assert (config.model_type, config.num_labels, config.image_size, config.hidden_size) == ("vit", 7, 12, 32)
    loaded = construct_pretrained(section, config, "image_classification")
    assert loaded.new == ("classifier.bias", "classifier.weight")
    assert {name.split(".")[0] for name in loaded.unused} == {"decoder"}
    ours, theirs = loaded.model.vit.state_dict(), model.vit.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_model_from_scratch_knows_where_its_patches_are() -> None:
    """transformers leaves both tables of positions at zero."""
    model = fresh()
    for table in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
        rows = table[0, 1:]
        assert torch.cdist(rows, rows).fill_diagonal_(1.0).min() > 0.1, "every patch has another position"
    assert model.decoder.mask_token.std() > 0
