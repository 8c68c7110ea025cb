"""How the layers of a family are split over tensor-parallel ranks, for DeepSpeed's AutoTP.

A matrix split by *columns* gives each rank a part of its outputs, one split by *rows* takes a part of its inputs, and
the ranks add their results (Shoeybi et al. 2019, section 3). The patterns are those of transformers' own plans, without
the output head: each rank has all logits, so losses and `model.logits_chunk` are those of one rank.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorPlan:
    """Names of layers, as the ends of their paths.

    columns, rows: split layers. summed: weights that each rank has whole and applies to its own heads, so that their
    gradients are summed over the ranks.
    """

    columns: tuple[str, ...]
    rows: tuple[str, ...]
    summed: tuple[str, ...] = ()


_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_GATED = TensorPlan((*_QKV, "mlp.gate_proj", "mlp.up_proj"), ("self_attn.o_proj", "mlp.down_proj"))
_GATED_WITH_NORMS = TensorPlan(_GATED.columns, _GATED.rows, ("self_attn.q_norm", "self_attn.k_norm"))
TENSOR_PLANS: dict[str, TensorPlan] = {
    **dict.fromkeys(
        ("cohere", "gemma", "gemma2", "granite", "llama", "mistral", "qwen2", "smollm3"),
        _GATED,
    ),
    **dict.fromkeys(("gemma3_text", "qwen3"), _GATED_WITH_NORMS),
    # Experts are whole on each rank, or shared along `parallel.expert`.
    **dict.fromkeys(("mixtral", "qwen2_moe"), TensorPlan(_QKV, ("self_attn.o_proj",))),
    "qwen3_moe": TensorPlan(_QKV, ("self_attn.o_proj",), ("self_attn.q_norm", "self_attn.k_norm")),
    "gpt_neox": TensorPlan(
        ("attention.query_key_value", "mlp.dense_h_to_4h"), ("attention.dense", "mlp.dense_4h_to_h")
    ),
    "phi": TensorPlan((*_QKV, "mlp.fc1"), ("self_attn.dense", "mlp.fc2")),
    "starcoder2": TensorPlan((*_QKV, "mlp.c_fc"), ("self_attn.o_proj", "mlp.c_proj")),
}


def split_dimension(name: str) -> int | None:
    """The dimension along which tensor-parallel ranks have parts of a weight; None if each has all of it.

    The names of layers mean the same in every family of the table.
    """
    layer, _, kind = name.rpartition(".")
    if any(layer.endswith(f".{column}") for column in _COLUMNS):
        return 0
    return 1 if kind == "weight" and any(layer.endswith(f".{row}") for row in _ROWS) else None


_COLUMNS = frozenset(layer for plan in TENSOR_PLANS.values() for layer in plan.columns)
_ROWS = frozenset(layer for plan in TENSOR_PLANS.values() for layer in plan.rows)
# Families whose attention has been compared with one rank's on rows that ranks share (docs/large/parallel.md).
SEQUENCE_FAMILIES = frozenset(
    (
        *("cohere", "gemma", "gemma3_text", "glm4", "gpt2", "gpt_neox", "granite", "helium", "llama", "mistral"),
        *(
            "mixtral",
            "qwen2_moe",
            "qwen3_moe",
            "olmo2",
            "olmo3",
            "phi",
            "phi3",
            "qwen2",
            "qwen3",
            "smollm3",
            "stablelm",
            "starcoder2",
        ),
    )
)
