"""The specification of `text_regression`."""

from __future__ import annotations

from shardyard.objectives.spec import ObjectiveSpec

SPEC = ObjectiveSpec(
    name="text_regression",
    loss="shardyard.objectives.text_regression.loss:make",
    head=("AutoModelForSequenceClassification", "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES"),
    columns={"text": "text", "label": "number"},
    optional_columns={"text_pair": "text"},
    rows="shardyard.objectives.text_regression.rows:make",
    task="text-classification",
    card="Its only logit is the predicted number.",
    sections=frozenset({"regression"}),
    metrics={"rmse": False, "mae": False, "pearson": True, "spearman": True},
    row_shape="text",
    new_head=True,
    single_output=True,
    problem_type="regression",
    predicts="shardyard.objectives.predictions:number",
)
