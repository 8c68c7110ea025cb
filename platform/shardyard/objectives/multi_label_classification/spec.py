"""The specification of `multi_label_classification`."""

from __future__ import annotations

from shardyard.objectives.spec import ObjectiveSpec

SPEC = ObjectiveSpec(
    name="multi_label_classification",
    loss="shardyard.objectives.multi_label_classification.loss:make",
    head=("AutoModelForSequenceClassification", "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES"),
    columns={"text": "text", "labels": "tags"},
    optional_columns={"text_pair": "text"},
    rows="shardyard.objectives.multi_label_classification.rows:make",
    task="text-classification",
    card="The sigmoid of each logit is the probability of its class; more than one may be above 0.5, or none.",
    sections=frozenset(),
    metrics={"f1_micro": True, "f1_macro": True, "accuracy": True},
    row_shape="text",
    new_head=True,
    classes=True,
    problem_type="multi_label_classification",
    predicts="shardyard.objectives.predictions:all_labels",
)
