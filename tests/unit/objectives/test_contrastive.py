"""The losses of CLIP and LLaVA against those of transformers, and what an evaluation makes of embeddings."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, LlavaConfig, LlavaForConditionalGeneration

from shardyard.objectives.base import IGNORED
from shardyard.objectives.contrastive.gathering import gather_rows
from shardyard.objectives.contrastive.similarity import LARGEST_SCALE, Similarity
from shardyard.objectives.inputs import ObjectiveInputs
from shardyard.objectives.make import make_objective

SIDE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
END = 9


@pytest.fixture
def clip() -> CLIPModel:
    torch.manual_seed(0)
    text = {**SIDE, "vocab_size": 10, "eos_token_id": END, "max_position_embeddings": 8}
    vision = {**SIDE, "image_size": 16, "patch_size": 8}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))


def pairs(rows: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, END, (rows, 6), generator=generator)
    ids[:, 4:] = END
    mask = torch.tensor([1, 1, 1, 1, 1, 0]).expand(rows, -1)
    return {
        "pixel_values": torch.randn(rows, 3, 16, 16, generator=generator),
        "input_ids": ids,
        "attention_mask": mask,
    }


def test_the_loss_and_its_gradients_are_those_of_transformers(clip: CLIPModel) -> None:
    batch, objective = pairs(6), make_objective("contrastive", ObjectiveInputs())
    theirs = clip(**batch, return_loss=True).loss
    theirs.backward()
    expected = {name: p.grad.clone() for name, p in clip.named_parameters() if p.grad is not None}
    clip.zero_grad()
    ours = objective.measure(clip, batch).losses["loss"] / objective.counts(batch)["loss"]
    ours.backward()
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    assert expected.keys() == dict(clip.named_parameters()).keys()
    for name, parameter in clip.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-6, rtol=1e-5)


def test_the_scale_ends_at_a_hundred(clip: CLIPModel) -> None:
    batch, objective = pairs(4), make_objective("contrastive", ObjectiveInputs())
    losses = []
    for scale in (LARGEST_SCALE, 10 * LARGEST_SCALE):
        clip.logit_scale.data.fill_(math.log(scale))
        losses.append(objective.measure(clip, batch).losses["loss"])
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-5)
    clip.zero_grad()
    losses[1].backward()
    assert clip.logit_scale.grad == 0


def test_an_evaluation_compares_all_pairs_whatever_the_batches(clip: CLIPModel) -> None:
    batch, objective = pairs(8), make_objective("contrastive", ObjectiveInputs())
    clip.eval()
    assert objective.rows_to_collect(8) == 8
    assert float(objective.measure(clip, batch).losses["loss"]) == 0
    scores = []
    for size in (8, 3):
        collected: list[Any] = []
        for start in range(0, 8, size):
            part = {name: value[start : start + size] for name, value in batch.items()}
            with torch.no_grad():
                collected += objective.collect(clip, part, synchronised=False)
        scores.append(objective.score(collected))
    with torch.no_grad():
        output = clip(**batch, return_loss=True)
    assert scores[0]["loss"] == pytest.approx(float(output.loss), abs=1e-5)
    assert scores[1] == pytest.approx(scores[0], abs=1e-5)
    ranks = (output.logits_per_image >= output.logits_per_image.diagonal()[:, None]).sum(-1)
    for k in (1, 5):
        assert scores[0][f"image_to_text_recall_at_{k}"] == pytest.approx(float((ranks <= k).float().mean()))
    assert scores[0]["text_to_image_recall_at_10"] == 1  # of eight


def test_collected_embeddings_have_length_one(clip: CLIPModel) -> None:
    objective = make_objective("contrastive", ObjectiveInputs())
    with torch.no_grad():
        collected = objective.collect(clip.eval(), pairs(3), synchronised=False)
    for pair in collected:
        images, texts = torch.from_numpy(pair.embeddings).chunk(2)
        assert float(images.norm()) == pytest.approx(1, abs=1e-5)
        assert float(texts.norm()) == pytest.approx(1, abs=1e-5)
        assert float(pair.similarity.scale) == pytest.approx(float(clip.logit_scale.detach().exp()), rel=1e-6)


@pytest.mark.parametrize("bias", [None, torch.tensor(-3.0)])
def test_parts_of_the_rows_add_up_to_the_whole(bias: torch.Tensor | None) -> None:
    generator = torch.Generator().manual_seed(2)
    images, texts = (torch.nn.functional.normalize(torch.randn(6, 4, generator=generator), dim=-1) for _ in range(2))
    similarity = Similarity(torch.tensor(12.0), bias)
    whole = similarity.loss(images, texts, images, texts)
    parts = [similarity.loss(images[p], texts[p], images, texts, p.start) for p in (slice(0, 2), slice(2, 6))]
    torch.testing.assert_close(parts[0] + parts[1], whole)


def test_alone_rows_stay_as_they_are() -> None:
    rows = torch.randn(3, 2)
    gathered, first = gather_rows(rows, None)
    assert gathered is rows
    assert first == 0


def test_the_loss_of_answers_is_that_of_llava() -> None:
    torch.manual_seed(0)
    config = LlavaConfig(
        text_config={**SIDE, "model_type": "llama", "vocab_size": 12, "max_position_embeddings": 32},
        vision_config={**SIDE, "model_type": "clip_vision_model", "image_size": 16, "patch_size": 8},
        image_token_index=11,
    )
    model = LlavaForConditionalGeneration(config).eval()
    ids = torch.tensor([[1, 11, 11, 11, 11, 2, 3, 4, 5, 6], [1, 11, 11, 11, 11, 7, 8, 9, 9, 9]])
    targets = torch.full_like(ids, IGNORED)
    targets[0, 7:], targets[1, 6:9] = ids[0, 7:], ids[1, 6:9]
    pixels = torch.randn(2, 3, 16, 16)
    mask = torch.ones_like(ids)
    mask[1, 9] = 0
    theirs = model(input_ids=ids, pixel_values=pixels, attention_mask=mask, labels=targets).loss
    shifted = torch.cat([targets[:, 1:], torch.full((2, 1), IGNORED)], dim=1)
    batch = {"input_ids": ids, "pixel_values": pixels, "attention_mask": mask, "labels": shifted}
    objective = make_objective("vision_language", ObjectiveInputs())
    ours = objective.measure(model, batch).losses["loss"] / objective.counts(batch)["loss"]
    assert objective.counts(batch)["loss"] == 6
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
