"""The specification of `speech_ctc`."""

from __future__ import annotations

from shardyard.objectives.spec import ObjectiveSpec

SPEC = ObjectiveSpec(
    name="speech_ctc",
    loss="shardyard.objectives.speech_ctc.loss:make",
    head=("AutoModelForCTC", "MODEL_FOR_CTC_MAPPING_NAMES"),
    families=frozenset(
        {
            "data2vec-audio",
            "hubert",
            "sew",
            "sew-d",
            "unispeech",
            "unispeech-sat",
            "wav2vec2",
            "wav2vec2-bert",
            "wav2vec2-conformer",
            "wavlm",
        }
    ),
    columns={"audio": "audio", "text": "text"},
    optional_columns={"segments": "segments"},
    rows="shardyard.objectives.speech_ctc.rows:make",
    task="automatic-speech-recognition",
    hears=True,
    sections=frozenset({"audio"}),
    metrics={"word_error_rate": False, "character_error_rate": False},
    row_shape="sound",
    new_head=True,
    reads_source=True,
)
