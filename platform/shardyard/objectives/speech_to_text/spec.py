"""The specification of `speech_to_text`."""

from __future__ import annotations

from shardyard.objectives.spec import ObjectiveSpec

SPEC = ObjectiveSpec(
    name="speech_to_text",
    loss="shardyard.objectives.speech_to_text.loss:make",
    head=("AutoModelForSpeechSeq2Seq", "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES"),
    families=frozenset({"whisper"}),
    columns={"audio": "audio", "text": "text"},
    rows="speech",
    task="automatic-speech-recognition",
    sections=frozenset({"loss", "audio"}),
    metrics={"perplexity": False, "word_error_rate": False, "character_error_rate": False},
    row_shape="speech",
    decodes=True,
    reads_source=True,
)
