"""What objectives read under private names is still where they look for it."""

from __future__ import annotations

from types import SimpleNamespace

from transformers import GPT2Config, MixtralConfig, MixtralForCausalLM
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter

from shardyard.objectives import quirks


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
