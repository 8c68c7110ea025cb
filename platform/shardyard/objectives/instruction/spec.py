"""The specification of `instruction`."""

from __future__ import annotations

from shardyard.objectives.spec import CAUSAL_LM, ObjectiveSpec

SPEC = ObjectiveSpec(
    name="instruction",
    loss="shardyard.objectives.answers:make",
    head=CAUSAL_LM,
    columns={"messages": "messages"},
    layouts="conversations",
    rows="conversations",
    task="text-generation",
    sections=frozenset({"loss", "chat"}),
    metrics={"perplexity": False, "token_accuracy": True},
    generates=True,
    chat=True,
    answers=True,
    vocabulary=True,
)
