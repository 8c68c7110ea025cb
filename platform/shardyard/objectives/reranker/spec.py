"""The specification of `reranker`."""

from __future__ import annotations

from shardyard.objectives.spec import ObjectiveSpec

SPEC = ObjectiveSpec(
    name="reranker",
    loss="shardyard.objectives.reranker.loss:make",
    head=("AutoModelForSequenceClassification", "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES"),
    columns={"query": "text", "documents": "texts", "labels": "numbers"},
    rows="shardyard.objectives.reranker.rows:make",
    task="text-ranking",
    card=(
        "`tokenizer(query, document)` makes its input, and its only logit is the score of the document. `CrossEncoder` "
        "of sentence-transformers loads it, too."
    ),
    sections=frozenset({"ranking"}),
    metrics={"accuracy": True, "mrr": True, "ndcg_at_10": True},
    row_shape="text",
    texts=4,
    new_head=True,
    single_output=True,
)
