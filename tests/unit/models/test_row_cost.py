"""What a row costs, counted on shapes, against the usual closed forms and the figures of papers.

A weight that multiplies costs 6 FLOPs a token: a multiply and an add, forward and twice backward. Attention adds
12·d·S·T a layer for T queries over S keys.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig

from shardyard.launch.run.prepare import prepare
from shardyard.models.build import architecture_config, skeleton
from shardyard.models.size.row_cost import _Shapes, row_cost
from shardyard.planning.plan import RunPlan, World
from shardyard.recipe.schema import Data, Image, Model, Recipe
from support.measured import planned


def _flops(name: str) -> float:
    flops = planned(name).plan.architecture.flops_per_row
    assert flops is not None
    return flops


def _layer(width: int, hidden: int) -> int:
    """Weights of a block of an encoder: four projections and two layers."""
    return 4 * width**2 + 2 * width * hidden


def _attention(width: int, queries: int, keys: int) -> int:
    return 12 * width * queries * keys


def test_bert_base() -> None:
    blocks, length = 12 * _layer(768, 3072), 512
    heads = 768**2 + 768 * 30522
    expected = 6 * length * (blocks + heads) + 12 * _attention(768, length, length)
    assert _flops("bert/base") == pytest.approx(expected, rel=0.01)


def test_vit_b16() -> None:
    """196 patches and the class token; 17.6 billion multiply-adds forward."""
    length = 197
    expected = 6 * length * 12 * _layer(768, 3072) + 6 * 196 * 768 * 768 + 12 * _attention(768, length, length)
    assert _flops("vision/vit-b16") == pytest.approx(expected, rel=0.01)
    assert _flops("vision/vit-b16") / 6 == pytest.approx(17.6e9, rel=0.01)


def test_t5_base() -> None:
    """Of equal lengths each weight meets as many tokens, and the tied table multiplies those of the target."""
    size, length = planned("seq2seq/t5-base").plan.architecture, 512
    expected = 6 * length * size.parameters + 3 * 12 * _attention(768, length, length)
    assert _flops("seq2seq/t5-base") == pytest.approx(expected, rel=0.01)


def test_whisper_tiny() -> None:
    """Keys and values of the decoder's second attention multiply frames; two convolutions make frames of the audio."""
    width, frames, length = 384, 1500, 448
    encoder = frames * 4 * _layer(width, 4 * width) + 3 * width * (80 * 2 * frames + width * frames)
    decoder = length * 4 * (_layer(width, 4 * width) + 2 * width**2) + frames * 4 * 2 * width**2
    head = length * width * 51865
    attention = 4 * sum(_attention(width, q, k) for q, k in ((frames, frames), (length, length), (length, frames)))
    assert _flops("speech/whisper-tiny") == pytest.approx(6 * (encoder + decoder + head) + attention, rel=0.01)


@pytest.mark.parametrize(
    ("name", "multiply_adds"),
    [
        # With the stride in the 3×3 convolution, as is usual by now; with it in the first the paper has 3.8, 7.6, 11.3.
        ("vision/resnet-50", 4.09e9),
        ("vision/resnet-101", 7.80e9),
        ("vision/resnet-152", 11.5e9),
        ("vision/vit-l16", 61.6e9),
        ("vision/swin-b", 15.4e9),
        ("vision/efficientnet-b0", 0.39e9),
    ],
)
def test_classifiers_of_images(name: str, multiply_adds: float) -> None:
    assert _flops(name) / 6 == pytest.approx(multiply_adds, rel=0.015)


def test_clip_is_its_two_towers() -> None:
    text = 77 * 12 * _layer(512, 2048) * 6 + 12 * _attention(512, 77, 77)
    patches = 6 * 49 * 3 * 32**2 * 768
    image = 50 * 12 * _layer(768, 3072) * 6 + 12 * _attention(768, 50, 50) + patches
    assert _flops("multimodal/clip-vit-b32") == pytest.approx(text + image, rel=0.01)


def test_an_image_is_read_before_its_answer() -> None:
    """LLaVA: Vicuna on the row, whose places for patches are among its tokens, and all but one layer of CLIP."""
    language = planned("multimodal/llava-1.5-7b").plan.architecture.parameters - 303_507_456 - 20_979_712
    length, patches = 2048, 577
    text = 6 * length * (language - 32064 * 4096) + 32 * _attention(4096, length, length)
    image = 6 * patches * 24 * _layer(1024, 4096) + 24 * _attention(1024, patches, patches)
    assert _flops("multimodal/llava-1.5-7b") == pytest.approx(text + image, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layers", "width", "length"),
    [
        ("gpt/gpt3-175b", 96, 12288, 2048),
        # Appendix B: 48 heads of 256, which are narrower than the model.
        ("gpt/palm-540b", 118, 48 * 256, 2048),
        ("gpt/llama2-70b", 80, 8192, 4096),
        # Heads that are wider than the model together.
        ("moe/qwen3-30b-a3b", 48, 32 * 128, 4096),
        # 192 numbers a head for keys, 128 for values.
        ("moe/deepseek-v3", 61, 128 * (192 + 128) // 2, 4096),
    ],
)
def test_the_attention_of_decoders_is_as_wide_as_its_heads(name: str, layers: int, width: int, length: int) -> None:
    plan = planned(name).plan
    assert plan.flops_per_token == 6 * plan.architecture.matmul_parameters + 12 * layers * width * length


def _with(name: str, **model: object) -> RunPlan:
    recipe: Recipe = planned(name).recipe
    changed = recipe.model_copy(update={"model": recipe.model.model_copy(update=model)})
    return prepare(changed, World(size=recipe.cluster.workers, gpu=True))


def test_checkpointing_keeps_the_inputs_of_blocks_and_one_block() -> None:
    kept = planned("bert/base").plan
    dropped = _with("bert/base", activation_checkpointing=True)
    inputs = 12 * 512 * 768 * 4
    assert kept.architecture.kept_32 is not None
    assert dropped.architecture.kept_32 is not None
    assert dropped.architecture.kept_32 == kept.architecture.kept_32, "every mode follows from one count"
    found = dropped.architecture.kept_32
    assert found.inputs * 512 == inputs
    assert found.inputs < found.between("full") < found.between("selective") < found.between("none")
    assert found.between("full", 2) == pytest.approx((found.between("full") + found.between("none")) / 2)
    assert found.between("full") < found.between("none") / 5
    assert dropped.memory.activations_bytes < kept.memory.activations_bytes / 4
    assert dropped.flops_per_token == kept.flops_per_token


@pytest.mark.parametrize(
    ("name", "logits"),
    [
        ("seq2seq/t5-base", 512 * 32128),
        ("speech/whisper-tiny", 448 * 51865),
        ("vision/vit-b16", 1000),
        ("multimodal/clip-vit-b32", 0),
    ],
)
def test_logits_are_in_the_memory(name: str, logits: int) -> None:
    """In bf16 as the model gives them and in fp32 for the loss, each with its gradient."""
    plan = planned(name).plan
    assert plan.memory.logits_bytes == 2 * plan.micro_batch * logits * (2 + 4)


def test_of_hidden_tokens_alone_the_loss_takes_logits() -> None:
    plan, logits = planned("bert/base").plan, 512 * 30522
    of_a_row = logits * (0.15 * 2 * (2 + 4) + 2)
    assert plan.memory.logits_bytes == pytest.approx(plan.micro_batch * of_a_row, rel=1e-6)


def test_the_module_is_left_without_hooks() -> None:
    """What watches blocks during the count is gone afterwards."""
    recipe = planned("speech/whisper-tiny").recipe
    config = architecture_config(recipe.model, vocabulary=51865, special_tokens={"pad_token_id": 0, "bos_token_id": 1})
    module: nn.Module = skeleton(recipe.model, config, recipe.objective)
    row_cost(module, config, recipe.objective, recipe.data, recipe.image)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


@pytest.mark.parametrize("family", ["bart", "longformer"])
def test_a_model_that_reads_values_is_planned_by_its_weights(family: str) -> None:
    """The end token's place and the number of windows are values, which the meta device does not have."""
    recipe = Recipe.model_validate(
        {
            "name": "values",
            "objective": "text_classification",
            "model": {"family": family},
            "tokenizer": "wordpiece-docs-4k",
            "data": {"sequence_length": 64, "train": [{"path": "x", "columns": {"label": "l"}}]},
            "train": {"steps": 1, "global_batch": 2, "precision": "fp32"},
            "optimizer": {"name": "adamw", "lr": 1e-3},
        }
    )
    architecture = prepare(recipe, World(size=1, gpu=False)).architecture
    assert architecture.parameters > 10_000_000
    assert (architecture.tokens_per_row, architecture.flops_per_row) == (64, None)


def test_experts_are_counted_in_grouped_products() -> None:
    """Two of eight experts for each token."""
    size = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = {**size, "num_key_value_heads": 4, "num_local_experts": 8, "num_experts_per_tok": 2, "num_labels": 2}
    recipe = Recipe.model_validate(
        {
            "name": "experts",
            "objective": "text_classification",
            "model": {"family": "mixtral", "config": config},
            "data": {"sequence_length": 32, "train": [{"path": "x", "columns": {"label": "l"}}]},
            "train": {"steps": 1, "global_batch": 2, "precision": "fp32"},
            "optimizer": {"name": "adamw", "lr": 1e-3},
        }
    )
    flops = prepare(recipe, World(size=1, gpu=False)).architecture.flops_per_row
    layer = 4 * 64**2 + 2 * 3 * 64 * 96 + 64 * 8
    assert flops == pytest.approx(6 * 32 * 2 * layer + 2 * _attention(64, 32, 32) + 6 * 32 * 64 * 2, rel=0.01)


def test_bytes_are_those_of_fp32_whatever_the_weights_were_saved_in() -> None:
    """The configuration of saved weights names their format."""
    settings: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 99}
    kept = []
    for saved in (None, torch.bfloat16):
        config = BertConfig(**settings, intermediate_size=192)
        config.dtype = saved
        module = skeleton(Model(family="bert"), config, "text_classification")
        data = Data.model_validate({"sequence_length": 32, "train": [{"source": "glosses"}]})
        kept.append(row_cost(module, config, "text_classification", data, Image()).kept)
    assert kept[0] == kept[1]


def test_a_row_of_a_reranker_has_several_documents() -> None:
    """Those of docstring-choices are four."""
    one, several = (planned(f"finetune/{name}").plan for name in ("classify-glosses", "rerank-docstrings"))
    assert several.architecture.tokens_per_row == 4 * 64
    assert one.architecture.tokens_per_row == one.tokens_per_row
    assert several.architecture.logits_per_row == 4


def test_a_repeated_operation_gives_what_it_gave_and_a_view_stays_one() -> None:
    shapes, aten = _Shapes(), torch.ops.aten
    rows = torch.empty(4, 6, device="meta", dtype=torch.bfloat16)
    for _ in range(2):
        product = shapes.of(aten.mm.default, (rows, rows.T), {})
        assert (product.shape, product.dtype, product.is_meta) == ((4, 4), torch.bfloat16, True)
        assert shapes.of(aten.mul.Tensor, (rows.T, 2), {}).stride() == (1, 6)
        assert shapes.of(aten.sum.dim_IntList, (rows, [1]), {"dtype": torch.float32}).dtype is torch.float32
        normal, mean, _ = shapes.of(aten.native_layer_norm.default, (rows, [6], None, None, 1e-5), {})
        assert (normal.shape, mean.shape) == ((4, 6), (4, 1))
        view = shapes.of(aten._unsafe_view.default, (rows, [2, 12]), {})
        assert view.untyped_storage()._cdata == rows.untyped_storage()._cdata
        assert shapes.of(aten.mm.default, (torch.ones(2, 2), torch.ones(2, 2)), {}).tolist() == [[2, 2], [2, 2]]
    first, second = (shapes.of(aten.mm.default, (rows, rows.T), {}) for _ in range(2))
    assert first.untyped_storage()._cdata != second.untyped_storage()._cdata
