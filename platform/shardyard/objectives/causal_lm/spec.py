"""The specification of `causal_lm`."""

from __future__ import annotations

from shardyard.objectives.spec import CAUSAL_LM, ObjectiveSpec

SPEC = ObjectiveSpec(
    name="causal_lm",
    loss="shardyard.objectives.causal_lm.loss:make",
    head=CAUSAL_LM,
    columns={"text": "text"},
    rows="packed",
    task="text-generation",
    metrics={"perplexity": False},
    experts=True,
    generates=True,
    vocabulary=True,
)
