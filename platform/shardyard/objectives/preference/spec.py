"""The specification of `preference`."""

from __future__ import annotations

from shardyard.objectives.spec import CAUSAL_LM, ObjectiveSpec

SPEC = ObjectiveSpec(
    name="preference",
    loss="shardyard.objectives.preference.loss:make",
    head=CAUSAL_LM,
    columns={"prompt": "text", "chosen": "text", "rejected": "text"},
    layouts="pairs",
    rows="preferences",
    task="text-generation",
    sections=frozenset({"preference", "chat"}),
    metrics={"accuracy": True, "margin": True},
    sequences=2,
    frozen="reference",
    generates=True,
    chat=True,
    answers=True,
    vocabulary=True,
)
