"""The model families that DeepSpeed's AutoEP supports, and its names for their layouts."""

from __future__ import annotations

# Family → AutoEP's name for its layout. Only families whose experts AutoEP computes in the same way as transformers.
EXPERT_PRESETS = {
    "deepseek_v2": "deepseek_v2",
    "deepseek_v3": "deepseek_v3",
    "mixtral": "mixtral",
    "qwen2_moe": "qwen3_moe",
    "qwen3_moe": "qwen3_moe",
}
