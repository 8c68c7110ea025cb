"""The specification of `distillation`."""

from __future__ import annotations

from shardyard.objectives.spec import CAUSAL_LM, ObjectiveSpec

SPEC = ObjectiveSpec(
    name="distillation",
    loss="shardyard.objectives.distillation.loss:make",
    head=CAUSAL_LM,
    columns={"text": "text"},
    rows="packed",
    task="text-generation",
    sections=frozenset({"distillation"}),
    metrics={"perplexity": False, "loss_labels": False, "loss_teacher": False},
    frozen="teacher",
    generates=True,
    vocabulary=True,
)
