"""The specification of `embedding`."""

from __future__ import annotations

from shardyard.objectives.spec import TEXT_ENCODING, ObjectiveSpec

SPEC = ObjectiveSpec(
    name="embedding",
    loss="shardyard.objectives.embedding.loss:make",
    head=("AutoModel", "MODEL_MAPPING_NAMES"),
    tables=(
        "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
        "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
        "MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES",
    ),
    # `AutoModel` is the whole encoder–decoder, which reads no text alone.
    other_heads=dict.fromkeys(("mt5", "t5", "t5gemma", "umt5"), TEXT_ENCODING),
    columns={"query": "text", "positive": "text"},
    optional_columns={"negative": "text"},
    rows="shardyard.objectives.embedding.rows:make",
    task="sentence-similarity",
    card=(
        "`1_Pooling/config.json` says how the states of the last layer become the vector of a text, which is scaled to "
        "length 1. `SentenceTransformer(folder)` of sentence-transformers does both."
    ),
    sections=frozenset({"embedding"}),
    metrics={"recall_at_1": True, "recall_at_5": True, "recall_at_10": True, "mrr": True, "ndcg_at_10": True},
    row_shape="text",
    sequences=2,
    whole_batch=True,
)
