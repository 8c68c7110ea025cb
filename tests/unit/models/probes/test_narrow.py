"""Narrow copies of models: every kind of layer, small sizes, and no weight that is zero."""

from __future__ import annotations

import pytest
from transformers import AutoConfig

from shardyard.models.probes.narrow import Effort, Narrow, NotNarrowedError, narrow_config, narrow_model


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2_moe"])
def test_a_copy_is_small(family: str) -> None:
    found = narrow_model(AutoConfig.for_model(family))
    assert found.config.model_type == family
    assert sum(parameter.numel() for parameter in found.model.parameters()) < 1_000_000
    assert not found.model.training


def test_every_kind_of_layer_is_kept() -> None:
    """Qwen3-Next has three layers of linear attention before each of full attention."""
    config = AutoConfig.for_model("qwen3_next", num_hidden_layers=12, num_experts=16)
    assert narrow_config(config).layer_types == ["linear_attention"] * 3 + ["full_attention"]


def test_layers_of_other_numbers_are_other_kinds() -> None:
    """gemma2 alternates attention in a window with full attention."""
    windows = narrow_config(AutoConfig.for_model("gemma2", num_hidden_layers=4), row=64)
    assert windows.num_hidden_layers == 2
    assert windows.layer_types == ["sliding_attention", "full_attention"]


def test_windows_within_a_row_become_shorter_than_a_document() -> None:
    config = AutoConfig.for_model("mistral", sliding_window=256)
    assert narrow_config(config, row=512).sliding_window == 8
    assert narrow_config(config, row=256).sliding_window == 256


def test_no_weight_is_zero() -> None:
    """GPT-2 begins with biases of zero, which would hide what they pass on."""
    model = narrow_model(AutoConfig.for_model("gpt2")).model
    assert all(bool((parameter != 0).any()) for parameter in model.parameters())


def test_ids_of_special_tokens_stay_apart() -> None:
    config = AutoConfig.for_model(
        "llama", vocab_size=50_000, bos_token_id=40_000, eos_token_id=[40_001, 7], pad_token_id=40_000
    )
    narrow = narrow_config(config)
    assert narrow.vocab_size == 128
    assert narrow.pad_token_id == narrow.bos_token_id == 127
    assert narrow.eos_token_id == [126, 7]


def test_a_smaller_vocabulary_has_the_tokens_of_the_probes() -> None:
    config = AutoConfig.for_model("esm", vocab_size=33, hidden_size=32, num_hidden_layers=2, pad_token_id=1)
    narrow = narrow_config(config, "AutoModelForMaskedLM")
    assert (narrow.vocab_size, narrow.pad_token_id) == (128, 1)


def test_other_heads_are_narrowed_too() -> None:
    narrow = narrow_config(AutoConfig.for_model("vit"), "AutoModelForImageClassification")
    assert narrow.num_hidden_layers == 2
    assert narrow.hidden_size < 768


def test_stages_and_pictures_shrink_as_far_as_the_check_allows() -> None:
    tried: list[int] = []

    def check(candidate: Narrow) -> None:
        tried.append(candidate.config.image_size)
        if candidate.config.image_size < 64:
            raise ValueError("too small")

    narrow = narrow_config(
        AutoConfig.for_model("convnext"),
        "AutoModelForImageClassification",
        check=check,
        images=(32, 64),
        effort=Effort(tries=2),
    )
    assert (narrow.image_size, narrow.depths) == (64, [2, 2, 2, 2])
    assert narrow.hidden_sizes == [12, 24, 48, 96]
    assert tried == [32, 32, 64]


def test_a_configuration_that_builds_nothing_is_refused() -> None:
    config = AutoConfig.for_model("llama")
    config.hidden_act = "no such function"
    with pytest.raises(NotNarrowedError, match="'llama' cannot be built: KeyError"):
        narrow_config(config)
