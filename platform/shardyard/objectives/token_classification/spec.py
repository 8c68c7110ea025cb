"""The specification of `token_classification`."""

from __future__ import annotations

from shardyard.objectives.spec import ObjectiveSpec

SPEC = ObjectiveSpec(
    name="token_classification",
    loss="shardyard.objectives.token_classification.loss:make",
    head=("AutoModelForTokenClassification", "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES"),
    columns={"tokens": "texts", "tags": "tags"},
    rows="shardyard.objectives.token_classification.rows:make",
    task="token-classification",
    card=(
        "The first token of each word has the word's tag; the others were not trained. "
        '`pipeline("token-classification", aggregation_strategy="first")` reads the tags in this way.'
    ),
    metrics={"accuracy": True, "precision": True, "recall": True, "f1": True, "f1_tags": True},
    row_shape="text",
    new_head=True,
    classes=True,
    predicts="shardyard.objectives.predictions:tagged_words",
)
