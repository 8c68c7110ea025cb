"""Recipes of published sizes have the parameters that their papers and released weights have.

Counted on the meta device, by the sizes that come with the recipes. `released` is the count of the weights that the
authors (or, for architectures without, a widely used implementation) gave out, `paper` the round figure of the paper.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest

from shardyard.recipe.catalog.shipped import shipped_recipes
from support.measured import loaded, planned_by_shipped_size


class Size(NamedTuple):
    """Parameters in the paper, of released weights (None where there are none), and active in one token."""

    paper: float
    released: int | None = None
    active: float | None = None


SIZES = {
    # Both heads included, as they are trained; 109,482,240 and 335,141,888 without.
    "bert/base": Size(110e6, 110_106_428),
    "bert/large": Size(340e6, 336_226_108),
    "gpt/gpt2-124m": Size(124e6, 124_439_808),
    "gpt/gpt2-355m": Size(355e6, 354_823_168),
    "gpt/gpt2-774m": Size(774e6, 774_030_080),
    "gpt/gpt2-1.5b": Size(1558e6, 1_557_611_200),
    # Table D.1 says 174,600 million.
    "gpt/gpt3-175b": Size(175e9),
    "gpt/llama2-7b": Size(6.74e9, 6_738_415_616),
    "gpt/llama2-13b": Size(13.02e9, 13_015_864_320),
    "gpt/llama2-70b": Size(68.98e9, 68_976_648_192),
    "gpt/llama3-8b": Size(8.03e9, 8_030_261_248),
    "gpt/llama3-8b-128k": Size(8.03e9, 8_030_261_248),
    "gpt/palm-540b": Size(540.35e9),
    "moe/mixtral-8x7b": Size(46.7e9, 46_702_792_704, active=12.9e9),
    # Embeddings are active by this count; the report's 3.3B and 37B are round.
    "moe/qwen3-30b-a3b": Size(30.5e9, 30_532_122_624, active=3.35e9),
    "moe/deepseek-v3": Size(671e9, active=37.55e9),
    "moe/switch-base": Size(7.4e9),
    # Without the tables of sinusoids, which are no weights.
    "seq2seq/transformer-base": Size(65e6),
    "seq2seq/transformer-big": Size(213e6),
    "seq2seq/t5-base": Size(220e6, 222_903_552),
    "seq2seq/bart-large": Size(406e6, 406_291_456),
    "vision/vit-b16": Size(86e6, 86_567_656),
    "vision/vit-l16": Size(307e6, 304_326_632),
    "vision/resnet-50": Size(25.6e6, 25_557_032),
    "vision/resnet-101": Size(44.5e6, 44_549_160),
    "vision/resnet-152": Size(60.2e6, 60_192_808),
    "vision/swin-b": Size(88e6, 87_768_224),
    "vision/efficientnet-b0": Size(5.3e6, 5_288_548),
    "vision/mae-vit-b": Size(111.9e6, 111_907_840),
    "multimodal/clip-vit-b32": Size(151e6, 151_277_313),
    "multimodal/llava-1.5-7b-align": Size(7.06e9, 7_063_427_072),
    "multimodal/llava-1.5-7b": Size(7.06e9, 7_063_427_072),
    "speech/whisper-tiny": Size(39e6, 37_760_640),
    "speech/whisper-base": Size(74e6, 72_593_920),
    "speech/whisper-small": Size(244e6, 241_734_912),
    "speech/whisper-medium": Size(769e6, 763_857_920),
    "speech/whisper-large": Size(1550e6, 1_543_304_960),
    "finetune/llama3-8b-sft": Size(8.03e9, 8_030_261_248),
    "finetune/llama3-8b-lora": Size(8.03e9, 8_030_261_248),
}
# Figures of papers that their own weights, or their own sizes, miss by more than 1 %; how much there is instead.
ROUNDED = {
    "bert/large": 336.2e6,
    "seq2seq/t5-base": 222.9e6,
    "speech/whisper-tiny": 37.8e6,
    "speech/whisper-base": 72.6e6,
    # 37,000 rows of 512 and 6 + 6 layers of the paper's sizes; its table says 65 million.
    "seq2seq/transformer-base": 37_000 * 512 + 6 * (4 * 512**2 + 2 * 512 * 2048) + 6 * (8 * 512**2 + 2 * 512 * 2048),
}


def _parameters(name: str) -> int:
    count = planned_by_shipped_size(name).architecture.parameters
    if loaded(name).model.family == "marian":
        config = loaded(name).model.config
        count -= 2 * config["max_position_embeddings"] * config["d_model"]
    return count


@pytest.mark.parametrize("name", SIZES)
def test_the_parameters_are_those_of_the_paper(name: str) -> None:
    expected = SIZES[name]
    found = _parameters(name)
    if expected.released is not None:
        assert found == expected.released
    assert found == pytest.approx(ROUNDED.get(name, expected.paper), rel=0.01)
    assert abs(found / expected.paper - 1) < 0.04, "a rounding is explained, another model is not"


@pytest.mark.parametrize("name", ROUNDED)
def test_only_what_is_rounded_is_explained(name: str) -> None:
    assert abs(_parameters(name) / SIZES[name].paper - 1) > 0.01


@pytest.mark.parametrize("name", [name for name, size in SIZES.items() if size.active])
def test_a_token_meets_the_active_parameters_of_the_paper(name: str) -> None:
    assert planned_by_shipped_size(name).architecture.active_parameters == pytest.approx(SIZES[name].active, rel=0.01)


def test_a_switch_sends_a_token_to_one_expert() -> None:
    """Twelve layers of 128 experts, each of three matrices of 768 by 2048, of which a token meets one."""
    size = planned_by_shipped_size("moe/switch-base").architecture
    assert size.parameters - size.active_parameters == 12 * 127 * 3 * 768 * 2048


def test_deepseek_lacks_only_the_biases_of_its_router() -> None:
    """The released count less a bias for each routed expert, which is a buffer in transformers."""
    assert planned_by_shipped_size("moe/deepseek-v3").architecture.parameters == 671_026_419_200 - 58 * 256


def test_what_a_stage_trains_is_what_its_recipe_says() -> None:
    trained = {name: planned_by_shipped_size(name).architecture.trainable_parameters for name in SIZES}
    # Two layers between 1024 and 4096 numbers, with biases.
    assert trained["multimodal/llava-1.5-7b-align"] == 1024 * 4096 + 4096**2 + 2 * 4096
    # All but CLIP's tower, of which the released count is known.
    assert trained["multimodal/llava-1.5-7b"] == 7_063_427_072 - 303_507_456
    # Rank 16 on seven matrices of each of 32 layers.
    rows = 4 * 4096 + 4096 + 1024 + 4096 + 1024 + 3 * (4096 + 14336)
    assert trained["finetune/llama3-8b-lora"] == 32 * 16 * rows
    assert trained["finetune/llama3-8b-sft"] is None


def test_every_recipe_that_needs_a_large_gpu_is_checked() -> None:
    """Recipes with `memory_per_worker` are those of published sizes."""
    large = {shipped.name for shipped in shipped_recipes() if loaded(shipped.name).cluster.memory_per_worker}
    assert large == SIZES.keys()


@pytest.mark.parametrize("name", SIZES)
def test_the_plan_fits_the_gpus_that_the_recipe_supposes(name: str) -> None:
    recipe, plan = loaded(name), planned_by_shipped_size(name)
    assert recipe.cluster.memory_per_worker == "80GiB"
    assert plan.fits, plan.memory
    assert recipe.expected is not None
    assert f"{recipe.cluster.workers} GPUs of 80 GB" in " ".join(recipe.expected.split())
