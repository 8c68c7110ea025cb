"""Reading in slices for families whose files differ from their modules: stacked experts, split weights, parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig

from shardyard.models.pretrained import load_weights
from shardyard.models.slices.load import load_in_slices
from unit.models.test_slices import check_same

pytestmark = pytest.mark.slow

_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 99,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_EXPERTS = {
    **_TEXT,
    "moe_intermediate_size": 24,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "shared_expert_intermediate_size": 24,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "head_dim": 8,
}
_SIGHT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}
_SEQ2SEQ = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "vocab_size": 99,
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0),
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_moe": ("AutoModelForCausalLM", _EXPERTS),
    "deepseek_v3": ("AutoModelForCausalLM", _EXPERTS),
    "gpt_oss": ("AutoModelForCausalLM", _EXPERTS),
    "phi3": ("AutoModelForCausalLM", _TEXT),
    "bert": ("AutoModelForMaskedLM", _TEXT),
    "t5": ("AutoModelForSeq2SeqLM", {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "vocab_size": 99}),
    "whisper": ("AutoModelForSpeechSeq2Seq", _SEQ2SEQ),
    "resnet": ("AutoModelForImageClassification", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}),
    "clip": ("AutoModel", {"text_config": _TEXT, "vision_config": _SIGHT}),
    "llava": (
        "AutoModelForImageTextToText",
        {
            "text_config": {**_TEXT, "model_type": "llama"},
            "vision_config": {**_SIGHT, "model_type": "clip_vision_model"},
            "image_token_id": 98,
        },
    ),
}


@pytest.mark.parametrize("family", CASES)
def test_slices_hold_what_transformers_loads(family: str, tmp_path: Path) -> None:
    auto, fields = getattr(transformers, CASES[family][0]), CASES[family][1]
    torch.manual_seed(0)
    model = auto.from_config(AutoConfig.for_model(family, **fields))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape) / 10  # zeros and ones would hide what is exchanged
    model.save_pretrained(tmp_path, max_shard_size="5kB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    config = AutoConfig.from_pretrained(tmp_path)
    entire = load_weights(auto, str(tmp_path), config, seed=3)
    sliced = load_in_slices(auto, str(tmp_path), config, seed=3)
    check_same(entire, sliced)
    assert len(sliced.sources) == len(list(sliced.model.parameters()))
