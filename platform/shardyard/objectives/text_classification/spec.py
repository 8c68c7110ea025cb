"""The specification of `text_classification`."""

from __future__ import annotations

from shardyard.objectives.spec import ObjectiveSpec

SPEC = ObjectiveSpec(
    name="text_classification",
    loss="shardyard.objectives.classification:make",
    head=("AutoModelForSequenceClassification", "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES"),
    columns={"text": "text", "label": "label"},
    optional_columns={"text_pair": "text"},
    rows="labelled_text",
    task="text-classification",
    metrics={"accuracy": True, "accuracy_top5": True, "f1": True},
    row_shape="text",
    new_head=True,
    classes=True,
    predicts="shardyard.objectives.predictions:likeliest_classes",
)
