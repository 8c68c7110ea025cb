"""What each objective needs: a head of transformers, columns of the data, sections of the recipe. Pure facts.

Adding an objective is one line here, one file in `objectives/` and, where rows are of a new kind, one in
`data/formats/`; `docs/objectives.md` shows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["text", "label", "image", "audio", "messages"]

# Recipe sections that only some objectives read; elsewhere they would change nothing.
OPTIONAL_SECTIONS = ("loss", "masking", "image", "audio", "preference", "distillation")


@dataclass(frozen=True)
class ObjectiveFacts:
    """One objective.

    auto_class: the `Auto…` class of transformers whose models have the head. heads: the table of that class in
        transformers' `modeling_auto.py`. families: where only some of that table will do, which.
    columns: role → kind of what a row is made of. optional_columns: the same, where present.
    rows: `packed`: documents joined and cut into full rows; `examples`: one example (or a piece of one) a row.
    sections: those of OPTIONAL_SECTIONS that it reads.
    metrics: what an evaluation gives beside `loss`, with True where larger is better.
    text: whether a tokenizer takes part. whole_batch: whether a step needs all rows of a rank in one micro-batch.
    sequences: how many sequences a row of a decoder is made of.
    generates: whether the trained model continues a prompt; chat: as an answer, in the tokenizer's chat template.
    """

    auto_class: str
    heads: str
    columns: Mapping[str, Kind]
    rows: Literal["packed", "examples"] = "examples"
    families: frozenset[str] | None = None
    optional_columns: Mapping[str, Kind] = field(default_factory=dict)
    sections: frozenset[str] = frozenset({"loss"})
    metrics: Mapping[str, bool] = field(default_factory=dict)
    text: bool = True
    sequences: int = 1
    generates: bool = False
    chat: bool = False
    whole_batch: bool = False


_PERPLEXITY = {"perplexity": False}
_TEXT: Mapping[str, Kind] = {"text": "text"}
_CAUSAL = ("AutoModelForCausalLM", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES")
_PRETRAINING = ("AutoModelForPreTraining", "MODEL_FOR_PRETRAINING_MAPPING_NAMES")

OBJECTIVES: dict[str, ObjectiveFacts] = {
    "causal_lm": ObjectiveFacts(*_CAUSAL, _TEXT, rows="packed", metrics=_PERPLEXITY, generates=True),
    "masked_lm": ObjectiveFacts(
        "AutoModelForMaskedLM",
        "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
        _TEXT,
        sections=frozenset({"loss", "masking"}),
        metrics=_PERPLEXITY | {"accuracy": True},
    ),
    "bert_pretraining": ObjectiveFacts(
        *_PRETRAINING,
        _TEXT,
        families=frozenset({"bert", "megatron-bert", "mobilebert"}),
        sections=frozenset({"masking"}),
        metrics={"loss_mlm": False, "loss_nsp": False, "mlm_accuracy": True, "nsp_accuracy": True},
    ),
    "seq2seq": ObjectiveFacts(
        "AutoModelForSeq2SeqLM",
        "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
        {"source": "text", "target": "text"},
        metrics=_PERPLEXITY | {"bleu": True, "chrf": True, "chrf_of_source": True},
        generates=True,
    ),
    "image_classification": ObjectiveFacts(
        "AutoModelForImageClassification",
        "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
        {"image": "image", "label": "label"},
        sections=frozenset({"loss", "image"}),
        metrics={"accuracy": True, "accuracy_top5": True, "f1": True},
        text=False,
    ),
    "masked_image": ObjectiveFacts(
        *_PRETRAINING,
        {"image": "image"},
        families=frozenset({"vit_mae"}),
        sections=frozenset({"image"}),
        text=False,
    ),
    "contrastive": ObjectiveFacts(
        "AutoModelForZeroShotImageClassification",
        "MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES",
        {"image": "image", "text": "text"},
        families=frozenset({"clip"}),
        sections=frozenset({"image"}),
        whole_batch=True,
        metrics={f"{name}_recall_at_{k}": True for name in ("image_to_text", "text_to_image") for k in (1, 5, 10)},
    ),
    "vision_language": ObjectiveFacts(
        "AutoModelForImageTextToText",
        "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
        {"image": "image", "prompt": "text", "response": "text"},
        families=frozenset({"llava"}),
        sections=frozenset({"loss", "image"}),
        metrics=_PERPLEXITY | {"token_accuracy": True},
    ),
    "speech_to_text": ObjectiveFacts(
        "AutoModelForSpeechSeq2Seq",
        "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
        {"audio": "audio", "text": "text"},
        families=frozenset({"whisper"}),
        sections=frozenset({"loss", "audio"}),
        metrics=_PERPLEXITY | {"word_error_rate": False, "character_error_rate": False},
    ),
    "text_classification": ObjectiveFacts(
        "AutoModelForSequenceClassification",
        "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
        {"text": "text", "label": "label"},
        optional_columns={"text_pair": "text"},
        metrics={"accuracy": True, "accuracy_top5": True, "f1": True},
    ),
    "instruction": ObjectiveFacts(
        *_CAUSAL, {"messages": "messages"}, metrics=_PERPLEXITY | {"token_accuracy": True}, generates=True, chat=True
    ),
    "preference": ObjectiveFacts(
        *_CAUSAL,
        {"prompt": "text", "chosen": "text", "rejected": "text"},
        sections=frozenset({"preference"}),
        metrics={"accuracy": True, "margin": True},
        sequences=2,
        generates=True,
        chat=True,
    ),
    "distillation": ObjectiveFacts(
        *_CAUSAL,
        _TEXT,
        rows="packed",
        sections=frozenset({"distillation"}),
        metrics=_PERPLEXITY | {"loss_labels": False, "loss_teacher": False},
        generates=True,
    ),
}
