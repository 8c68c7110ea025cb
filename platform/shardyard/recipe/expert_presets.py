"""The model families that DeepSpeed's AutoEP supports, and its names of their layouts."""

from __future__ import annotations

# Family → AutoEP's name of its layout, of those whose experts it computes as transformers does.
EXPERT_PRESETS = {
    "deepseek_v2": "deepseek_v2",
    "deepseek_v3": "deepseek_v3",
    "mixtral": "mixtral",
    "qwen2_moe": "qwen3_moe",
    "qwen3_moe": "qwen3_moe",
}
