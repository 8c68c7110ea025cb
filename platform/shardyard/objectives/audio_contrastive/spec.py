"""The specification of `audio_contrastive`."""

from __future__ import annotations

from shardyard.objectives.spec import ObjectiveSpec

SPEC = ObjectiveSpec(
    name="audio_contrastive",
    loss="shardyard.objectives.audio_contrastive.loss:make",
    head=("AutoModel", "MODEL_MAPPING_NAMES"),
    families=frozenset({"clap"}),
    columns={"audio": "audio", "text": "text"},
    rows="shardyard.objectives.audio_contrastive.rows:make",
    task="zero-shot-audio-classification",
    card="`ClapModel` and `ClapProcessor` compare recordings (48 kHz) with texts.",
    sections=frozenset({"audio"}),
    metrics={f"{way}_recall_at_{k}": True for way in ("audio_to_text", "text_to_audio") for k in (1, 5, 10)},
    row_shape="sound_and_text",
    whole_batch=True,
)
