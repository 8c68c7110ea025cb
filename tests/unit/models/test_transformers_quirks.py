"""What Shardyard works around in transformers and peft: that it works, and that they still need it."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
    MoonshineStreamingConfig,
    SiglipConfig,
    SiglipModel,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    WhisperConfig,
    masking_utils,
    modeling_utils,
)
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter

from shardyard.models import quirks


def _mae() -> ViTMAEForPreTraining:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    config = ViTMAEConfig(**sizes, **decoder, decoder_intermediate_size=16, image_size=8, patch_size=4)
    return ViTMAEForPreTraining(config)


def test_transformers_still_loses_the_positions_of_a_masked_autoencoders_decoder() -> None:
    decoder = _mae().decoder
    assert decoder.decoder_pos_embed.abs().max() == 0
    quirks.place_patches(decoder)
    assert decoder.decoder_pos_embed.abs().max() > 0.5


def test_transformers_still_begins_siglip_where_all_pairs_look_alike() -> None:
    sides = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    vision = {**sides, "image_size": 8, "patch_size": 4}
    model = SiglipModel(SiglipConfig(text_config={**sides, "vocab_size": 9}, vision_config=vision))
    assert (float(model.logit_scale), float(model.logit_bias)) == (0, 0)


def test_transformers_still_leaves_what_bears_its_mark_as_it_is() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=11, n_positions=4))
    layer = model.transformer.h[0].mlp.c_fc
    rule = quirks.initialisation_rule(model)
    layer.weight.data.fill_(7.0)
    layer.weight._is_hf_initialized = layer._is_hf_initialized = True
    rule(layer)
    kept = bool((layer.weight == 7.0).all())
    del layer.weight._is_hf_initialized
    quirks.forget_initialisation(model)
    rule(layer)
    assert kept
    assert layer.weight.abs().max() < 1.0


def test_transformers_still_drops_whispers_fields_of_a_derived_configuration(tmp_path: Path) -> None:
    found = GenerationConfig.from_model_config(WhisperConfig())
    for name in ("marked", "unmarked"):
        found.lang_to_id = {"<|en|>": 1}
        found.save_pretrained(tmp_path / name)
        quirks.keep_all_fields(found)
    marked, unmarked = (GenerationConfig.from_pretrained(tmp_path / name) for name in ("marked", "unmarked"))
    assert not hasattr(marked, "lang_to_id")
    assert unmarked.lang_to_id == {"<|en|>": 1}


def test_moonshines_streaming_decoder_still_reads_a_field_that_it_does_not_declare() -> None:
    assert not hasattr(MoonshineStreamingConfig(), "num_key_value_heads")


def test_peft_still_changes_what_is_trained_as_it_switches_adapters_off() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    adapted = inject_adapter_in_model(LoraConfig(target_modules=["0"], r=2, init_lora_weights=False), model)
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert trained
    rows = torch.randn(3, 4)
    with quirks.adapters_off(adapted):
        assert {name for name, one in adapted.named_parameters() if one.requires_grad} == trained
        bare = adapted(rows)
    assert not torch.equal(bare, adapted(rows))
    adapted[0].enable_adapters(False)
    assert torch.equal(bare, adapted(rows))
    assert not any(parameter.requires_grad for parameter in adapted.parameters())


def test_bitsandbytes_still_asks_for_another_package_when_peft_imports_it() -> None:
    """Only with AVX-512, so the text is looked for in its code."""
    library = Path(find_spec("bitsandbytes").origin).parent  # type: ignore[union-attr, arg-type]
    assert 'logger.warning(\n                "Failed to load CPU gemm_4bit_forward' in (
        library / "backends" / "cpu" / "ops.py"
    ).read_text(encoding="utf-8")
    quirks.quiet_kernels()
    assert not logging.getLogger("bitsandbytes.backends.cpu.ops").isEnabledFor(logging.WARNING)


def test_a_configuration_says_its_attention() -> None:
    config = GPT2Config(attn_implementation="sdpa")
    assert quirks.attention_of(SimpleNamespace(config=config)) == "sdpa"
    assert quirks.attention_of(SimpleNamespace(module=SimpleNamespace(config=config))) == "sdpa"
    assert quirks.attention_of(object()) == ""


def test_a_mixture_names_its_routers() -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 11}
    config = MixtralConfig(**sizes, num_attention_heads=2, num_key_value_heads=1, num_local_experts=2)
    model = MixtralForCausalLM(config)
    found = [pair for module in model.modules() for pair in quirks.recorded_routers(module)]
    assert set(found) == {(MixtralTopKRouter, 0)}


def test_transformers_still_looks_at_masks_before_it_builds_them() -> None:
    """Both rows are one document, so it builds none; while it may not look, it builds one."""
    find, rows = masking_utils.find_packed_sequence_indices, torch.arange(4).expand(2, 4)
    assert find(rows) is None
    with quirks.unseen_masks(quirks.Masks(padded=True, packed=False)):
        assert torch.equal(find(rows), torch.zeros(2, 4, dtype=torch.int64))
    with quirks.unseen_masks(quirks.Masks(padded=False, packed=False)):
        assert masking_utils.find_packed_sequence_indices(torch.empty(2, 4, device="meta")) is None
    with quirks.unseen_masks(quirks.Masks(padded=False, packed=None)):
        assert masking_utils.find_packed_sequence_indices is find


def test_rows_on_the_host_say_which_masks_they_need() -> None:
    ones, part = torch.ones(2, 4, dtype=torch.int64), torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    whole, two = torch.arange(4).expand(2, 4), torch.tensor([[0, 1, 0, 1], [0, 1, 2, 3]])
    assert quirks.masks_of({"attention_mask": ones, "position_ids": whole}) == quirks.Masks(False, False)
    assert quirks.masks_of({"query_attention_mask": part}) == quirks.Masks(True, None)
    assert quirks.masks_of({"position_ids": two}) == quirks.Masks(False, True)


def test_layers_still_have_their_checkpoint_function_under_a_private_name() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=8))
    model.gradient_checkpointing_enable()
    quirks.set_checkpoint_function(model, print)
    assert [layer._gradient_checkpointing_func for layer in model.transformer.h] == [print, print]


def test_transformers_still_warns_of_padding_in_ids_without_values(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(modeling_utils.logger, "warning_once", told.append)
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=32, pad_token_id=0))
    ids = torch.zeros(1, 4, dtype=torch.long)
    with quirks.no_padding_warned_of():
        model.warn_if_padding_and_no_attention_mask(ids, None)
    assert told == []
    model.warn_if_padding_and_no_attention_mask(ids, None)
    assert len(told) == 1
