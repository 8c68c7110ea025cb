"""The specification of `audio_classification`."""

from __future__ import annotations

from shardyard.objectives.spec import ObjectiveSpec

SPEC = ObjectiveSpec(
    name="audio_classification",
    loss="shardyard.objectives.classification:make",
    head=("AutoModelForAudioClassification", "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES"),
    columns={"audio": "audio", "label": "label"},
    rows="shardyard.objectives.audio_classification.rows:make",
    task="audio-classification",
    sections=frozenset({"loss", "audio"}),
    metrics={"accuracy": True, "accuracy_top5": True, "f1": True},
    row_shape="sound",
    text=False,
    new_head=True,
    classes=True,
)
