"""Default configurations of model types, completed where transformers leaves out what a model needs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

_NUMBERS = (
    (re.compile(r"^((num|n|moe_num)_(local_|routed_)?experts|zero_expert_num)$"), 4),
    (re.compile(r"^(num_experts_per_tok(en)?|moe_topk|moe_k|top_k_experts)$"), 2),
    (re.compile(r"^(n_group|topk_group|num_expert_group|n(um)?_shared_experts?)$"), 1),
)
# What names alone do not tell.
_FAMILIES: dict[str, dict[str, object]] = {
    "deepseek_v2": {"n_routed_experts": 8, "moe_intermediate_size": 64},
    "dots1": {"n_routed_experts": 8, "first_k_dense_replace": 1},
    "esm": {"vocab_size": 33},
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "lfm2_moe": {"num_hidden_layers": 6, "layer_types": ["conv", "conv", "full_attention"] * 2},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8, "head_dim": 128},
    "reformer": {"is_decoder": True},
    "xmod": {"default_language": "en_XX"},
}


def completed(family: str) -> PreTrainedConfig:
    """The default configuration with numbers where it has none.

    Raises:
        Exception: whatever transformers raises; it refuses its own defaults.
    """
    default = AutoConfig.for_model(family)
    return AutoConfig.for_model(family, **completion(family, default))


def completion(family: str, default: PreTrainedConfig) -> dict[str, object]:
    """The fields that complete a family's default configuration."""
    values = default.to_dict()
    fields = _numbers(values) | _FAMILIES.get(family, {})
    if isinstance(text := values.get("text_config"), Mapping) and (inner := _numbers(text)):
        fields["text_config"] = {"model_type": text["model_type"], **inner}
    return fields


def _numbers(values: Mapping[str, Any]) -> dict[str, object]:
    missing = [name for name, value in values.items() if value is None]
    return {name: number for name in missing for pattern, number in _NUMBERS if pattern.match(name)}
