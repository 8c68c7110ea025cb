"""The specification of `speech_to_text`."""

from __future__ import annotations

from shardyard.objectives.spec import ObjectiveSpec

# Encoder–decoders that hear one recording and write one text.
_FAMILIES = frozenset(
    {
        "canary",
        "cohere_asr",
        "moonshine",
        "moonshine_streaming",
        "seamless_m4t",
        "seamless_m4t_v2",
        "speech-encoder-decoder",
        "speech_to_text",
        "speecht5",
        "whisper",
    }
)
_SPEAKS = "writes speech and not text"
_CONVERSES = "is a language model that reads sound among the tokens of a prompt, and no encoder–decoder"
_REFUSALS = {
    **dict.fromkeys(("dia", "vibevoice"), _SPEAKS),
    "pop2piano": "writes notes for a piano and not text",
    "kyutai_speech_to_text": "is a decoder that reads codes of sound beside its text, and no encoder–decoder",
    **dict.fromkeys(
        ("fun_asr_nano", "granite_speech", "granite_speech_plus", "qwen3_asr", "vibevoice_asr"), _CONVERSES
    ),
    **dict.fromkeys(("voxtral", "voxtral_realtime"), _CONVERSES),
}

SPEC = ObjectiveSpec(
    name="speech_to_text",
    loss="shardyard.objectives.speech_to_text.loss:make",
    head=("AutoModelForSpeechSeq2Seq", "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES"),
    families=_FAMILIES,
    refusals=_REFUSALS,
    columns={"audio": "audio", "text": "text"},
    optional_columns={"segments": "segments"},
    rows="speech",
    task="automatic-speech-recognition",
    hears=True,
    card="`AutoProcessor` prepares a recording (16 kHz) for `AutoModelForSpeechSeq2Seq`, and decodes what it "
    "writes by `generate`. The pipeline of transformers does both, greedily with `num_beams=1`; it reads a Whisper "
    "only if the tokenizer is Whisper's own.",
    sections=frozenset({"loss", "audio"}),
    metrics={"perplexity": False, "word_error_rate": False, "character_error_rate": False},
    row_shape="speech",
    decodes=True,
    reads_source=True,
    vocabulary=True,
)
