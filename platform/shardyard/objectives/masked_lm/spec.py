"""The specification of `masked_lm`."""

from __future__ import annotations

from shardyard.objectives.spec import ObjectiveSpec

SPEC = ObjectiveSpec(
    name="masked_lm",
    loss="shardyard.objectives.masked_lm.loss:make",
    head=("AutoModelForMaskedLM", "MODEL_FOR_MASKED_LM_MAPPING_NAMES"),
    columns={"text": "text"},
    rows="masked",
    task="fill-mask",
    sections=frozenset({"loss", "masking"}),
    metrics={"perplexity": False, "accuracy": True},
    row_shape="text",
    vocabulary=True,
)
