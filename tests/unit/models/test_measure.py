"""Sizes of models, counted without building them; and what is said of configurations that describe none."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from shardyard.errors import ModelError
from shardyard.models.build import architecture_config, auto_class, construct, skeleton
from shardyard.models.size.measure import measure
from shardyard.planning.architecture import Architecture, LayerShape, flops_per_token
from shardyard.recipe.schema import Model
from support.tiny import CONFIGS

LLAMA_70B = {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
}
MIXTRAL_8X7B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
QWEN2_HALF_B = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
}


def sizes(family: str, vocabulary: int = 257, **config: Any) -> Architecture:
    return measure(Model(family=family, config=config), vocabulary=vocabulary)


def test_gpt2() -> None:
    found = sizes("gpt2", 50257)
    assert found.parameters == 124_439_808
    # Everything but the position table: the tied head multiplies.
    assert found.matmul_parameters == found.parameters - 1024 * 768
    assert found.largest_block_parameters == 12 * 768**2 + 13 * 768
    assert (found.layers, found.hidden_size, found.heads, found.vocabulary, found.positions) == (
        12,
        768,
        12,
        50257,
        1024,
    )


def test_gpt2_xl() -> None:
    assert sizes("gpt2", 50257, n_layer=48, n_head=25, n_embd=1600).parameters == 1_557_611_200


def test_llama2_7b() -> None:
    found = sizes("llama", 32000)
    assert found.parameters == 6_738_415_616
    # The head is a matrix of its own: of the two tables only the looked-up one does not multiply.
    assert found.matmul_parameters == found.parameters - 32000 * 4096
    assert found.positions == 2048


def test_llama2_70b() -> None:
    assert sizes("llama", 32000, **LLAMA_70B).parameters == pytest.approx(68_976_648_192, rel=1e-3)


def test_mixtral_counts_the_experts_that_a_token_meets() -> None:
    """Jiang et al. 2024: 47B parameters (46.7B), of which a token uses 13B (12.9B), the embedding included."""
    found = sizes("mixtral", 32000, **MIXTRAL_8X7B)
    assert found.parameters == 46_702_792_704
    assert found.matmul_parameters + 32000 * 4096 == pytest.approx(12.9e9, rel=5e-3)
    idle = 32 * 6 * 3 * 4096 * 14336
    assert found.matmul_parameters == found.parameters - 32000 * 4096 - idle


def test_the_parts_of_a_layer_are_recognised() -> None:
    assert sizes("gpt2").layer == LayerShape(key_value_width=768, mlp_width=3072)
    assert sizes("mixtral", **MIXTRAL_8X7B).layer == LayerShape(
        key_value_width=1024,
        mlp_width=14336,
        gated=True,
        rms_norm=True,
        rotary=True,
        experts=8,
        experts_per_token=2,
        inputs=(3, 1),
    )
    llama = sizes("llama", **LLAMA_70B).layer
    assert llama is not None
    assert llama.inputs == (3, 2)
    # Falcon's heads may share one key, and MPT and BLOOM give a ratio, or nothing, for the width of the MLP.
    shared = sizes("falcon", hidden_size=128, num_attention_heads=4, multi_query=True, new_decoder_architecture=False)
    assert shared.layer is not None
    assert shared.layer.key_value_width == 32
    assert sizes("mpt", d_model=128, n_heads=4, expansion_ratio=2).layer == LayerShape(128, 256)
    assert sizes("bloom", hidden_size=64, n_head=4).layer == LayerShape(64, 256)


def test_qwen2_counts_tied_embeddings_once() -> None:
    tied = sizes("qwen2", 151936, **QWEN2_HALF_B, tie_word_embeddings=True)
    untied = sizes("qwen2", 151936, **QWEN2_HALF_B, tie_word_embeddings=False)
    assert tied.parameters == 494_032_768
    assert untied.parameters - tied.parameters == 151936 * 896
    # What multiplies a token does not depend on where its weights lie.
    assert tied.matmul_parameters == untied.matmul_parameters
    assert flops_per_token(tied, 512) == flops_per_token(untied, 512)


@pytest.mark.parametrize("family", CONFIGS)
def test_the_count_is_that_of_a_model_that_is_really_built(family: str) -> None:
    model = Model(family=family, config=CONFIGS[family])
    built = construct(model, architecture_config(model, vocabulary=257))
    found = measure(model, vocabulary=257)
    assert found.parameters == sum(parameter.numel() for parameter in built.parameters())
    blocks = [part for module in built.modules() if isinstance(module, nn.ModuleList) for part in module]
    assert found.layers == len(blocks) == 2
    assert found.largest_block_parameters == sum(parameter.numel() for parameter in blocks[0].parameters())


@pytest.mark.parametrize(
    ("family", "config", "message"),
    [
        ("gpt2", {"n_layer": "two"}, "'n_layer' expected int, got str"),
        ("gpt2", {"n_head": 5}, "divisible by num_heads"),
        ("gpt2", {"activation_function": "zelu"}, "it does not know 'zelu'"),
        ("gpt2", {"n_embd": -768}, "refuses this configuration of 'gpt2'"),
        ("llama", {"hidden_size": 30, "num_attention_heads": 4}, "not a multiple of the number of attention heads"),
        ("llama", {"num_attention_heads": 0}, "by zero"),
        ("t5", {}, "Unrecognized configuration class"),
        ("gpt7", {}, "Unrecognized model identifier: gpt7"),
    ],
)
def test_a_configuration_of_no_model_is_explained_in_a_paragraph(
    family: str, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError) as caught:
        sizes(family, **config)
    text = str(caught.value)
    assert message in text
    assert text.startswith("model: ")
    assert repr(family) in text
    assert "\n" not in text
    assert len(text) < 500


@pytest.mark.parametrize("family", CONFIGS)
def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(family: str) -> None:
    with pytest.raises(ModelError, match=r"model.config.vocab_size is 256, but the tokenizer has 257 entries"):
        sizes(family, **CONFIGS[family], vocab_size=256)
    # A larger one is kept: many pad it to a multiple of 64.
    assert sizes(family, **CONFIGS[family], vocab_size=320).vocabulary == 320


def test_missing_pretrained_weights_are_an_error_of_the_model(tmp_path: Any) -> None:
    model = Model(family="gpt2", pretrained=str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match="nowhere"):
        architecture_config(model, vocabulary=257)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "vocab_size": 257, "n_layer": 1, "n_embd": 16}')
    empty = Model(family="gpt2", pretrained=str(tmp_path))
    with pytest.raises(ModelError, match="cannot build 'gpt2'"):
        construct(empty, architecture_config(empty, vocabulary=257))


def test_an_attention_that_is_not_installed_is_an_error_of_the_model() -> None:
    model = Model(family="gpt2", config=CONFIGS["gpt2"], attention="flash_attention_2")
    with pytest.raises(ModelError, match=r"cannot build 'gpt2'.*[Ff]lash"):
        construct(model, architecture_config(model, vocabulary=257))


@pytest.mark.parametrize("probability", [0.0, 0.25])
@pytest.mark.parametrize("family", CONFIGS)
def test_dropout_sets_every_dropout(family: str, probability: float) -> None:
    model = Model(family=family, config=CONFIGS[family], dropout=probability)
    config = architecture_config(model, vocabulary=257)
    named = {key: value for key, value in config.to_dict().items() if "drop" in key}
    expected = {"gpt2": {"resid_pdrop", "embd_pdrop", "attn_pdrop", "summary_first_dropout"}}
    assert set(named) >= expected.get(family, {"attention_dropout"})
    assert set(named.values()) == {probability}
    dropouts = [part.p for part in skeleton(model, config).modules() if isinstance(part, nn.Dropout)]
    assert set(dropouts) <= {probability}
    assert len(dropouts) == (1 + 3 * 2 if family == "gpt2" else 0)


def test_without_a_dropout_the_familys_own_stays() -> None:
    config = architecture_config(Model(family="gpt2"), vocabulary=257)
    assert (config.resid_pdrop, config.attn_pdrop) == (0.1, 0.1)
    config = architecture_config(Model(family="gpt2", config={"attn_pdrop": 0.3}), vocabulary=257)
    assert (config.resid_pdrop, config.attn_pdrop) == (0.1, 0.3)


def test_special_tokens_reach_the_configuration() -> None:
    ids = {"bos_token_id": 256, "eos_token_id": 256, "pad_token_id": None}
    config = architecture_config(Model(family="llama", config=CONFIGS["llama"]), vocabulary=257, special_tokens=ids)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (256, 256, None)


def test_activation_checkpointing_reaches_every_block() -> None:
    model = Model(family="gpt2", config=CONFIGS["gpt2"], activation_checkpointing=True)
    built = construct(model, architecture_config(model, vocabulary=257))
    assert built.is_gradient_checkpointing
    assert isinstance(built, auto_class()._model_mapping[type(built.config)])


def test_layers_may_have_heads_of_different_widths() -> None:
    """Gemma 4's layers of full attention have wider heads, and transformers then refuses to name one width."""
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 6, "num_attention_heads": 2}
    heads = {"num_key_value_heads": 1, "head_dim": 16, "global_head_dim": 32, "vocab_size_per_layer_input": 512}
    model = Model(family="gemma4_text", config={**size, **heads, "hidden_size_per_layer_input": 4})
    assert measure(model, vocabulary=257).attention_width == 2 * 32
