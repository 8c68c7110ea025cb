"""The specification of `seq2seq`."""

from __future__ import annotations

from shardyard.objectives.spec import ObjectiveSpec

SPEC = ObjectiveSpec(
    name="seq2seq",
    loss="shardyard.objectives.seq2seq.loss:make",
    head=("AutoModelForSeq2SeqLM", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES"),
    columns={"source": "text", "target": "text"},
    rows="translation",
    task="translation",
    metrics={
        "perplexity": False,
        "bleu": True,
        "chrf": True,
        "chrf_of_source": True,
        **dict.fromkeys(("rouge1", "rouge2", "rouge_l", "rouge_l_of_first_words"), True),
    },
    row_shape="text_pair",
    generates=True,
    answers=True,
    decodes=True,
    reads_source=True,
    source_length=True,
    vocabulary=True,
)
