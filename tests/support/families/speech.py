"""Tiny encoder–decoders that hear a recording and write its text: one of each family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.families.sound import ENCODERS

_SIDES = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
}
_BODY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_SEAMLESS = {
    "hidden_size": 16,
    "speech_encoder_layers": 2,
    "speech_encoder_attention_heads": 2,
    "speech_encoder_intermediate_size": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 32,
    "feature_projection_input_dim": 16,
    "conv_depthwise_kernel_size": 3,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "adaptor_kernel_size": 4,
    "adaptor_stride": 4,
    "max_position_embeddings": 64,
}
_PARAKEET = {**_BODY, "num_mel_bins": 16, "subsampling_conv_channels": 8, "conv_kernel_size": 3}

CONFIGS: dict[str, dict[str, Any]] = {
    "canary": {
        "encoder_config": _PARAKEET,
        "decoder_config": {**_BODY, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64},
    },
    "cohere_asr": {**_BODY, "encoder_config": _PARAKEET, "max_position_embeddings": 64},
    "moonshine": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "encoder_num_hidden_layers": 2,
        "decoder_num_hidden_layers": 2,
        "encoder_num_attention_heads": 2,
        "decoder_num_attention_heads": 2,
    },
    "moonshine_streaming": {
        **_BODY,
        "encoder_config": {**_BODY, "num_key_value_heads": 2, "sliding_windows": [[4, 2], [4, 1]]},
    },
    "seamless_m4t": _SEAMLESS,
    "seamless_m4t_v2": _SEAMLESS,
    "speech-encoder-decoder": {
        "encoder": {"model_type": "wav2vec2", **ENCODERS["wav2vec2"], "feat_extract_norm": "layer"},
        "decoder": {"model_type": "bert", **_BODY, "max_position_embeddings": 64},
    },
    "speech_to_text": {**_SIDES, "input_feat_per_channel": 16, "conv_channels": 16, "max_target_positions": 64},
    "speecht5": {
        "hidden_size": 16,
        **{name: value for name, value in _SIDES.items() if name != "d_model"},
        "conv_dim": [8, 8, 16],
        "conv_kernel": [10, 8, 4],
        "conv_stride": [8, 8, 4],
        "num_feat_extract_layers": 3,
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 2,
        "max_text_positions": 64,
    },
    "whisper": {**_SIDES, "num_mel_bins": 16, "max_source_positions": 50, "max_target_positions": 64},
}


def fields_of(data: Path, family: str, **config: Any) -> dict[str, Any]:
    """A family under `speech_to_text`, on the recordings of `support.families.sound`."""
    return {
        "name": f"tiny-{family}",
        "model": {"family": family, "config": {**CONFIGS[family], **config}, "dropout": 0.0},
        "objective": "speech_to_text",
        "tokenizer": "bytes",
        "audio": {"seconds": 1.0},
        "data": {
            "sequence_length": 12,
            "streams": 4,
            "shuffle_window": 16,
            "train": [{"path": str(data / "train.parquet")}],
            "validation": [{"path": str(data / "validation.parquet")}],
        },
        "train": {"steps": 2, "global_batch": 4, "precision": "fp32", "seed": 7},
        "optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1},
        "checkpoint": {"every": 1},
        "evaluate": {"every": 2, "rows": 7, "generate_rows": 4},
        "tracking": {"wandb": {"mode": "disabled"}},
    }
