"""The specification of `multiple_choice`."""

from __future__ import annotations

from shardyard.objectives.spec import ObjectiveSpec

SPEC = ObjectiveSpec(
    name="multiple_choice",
    loss="shardyard.objectives.multiple_choice.loss:make",
    head=("AutoModelForMultipleChoice", "MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES"),
    columns={"question": "text", "choices": "texts", "label": "label"},
    optional_columns={"context": "text"},
    rows="shardyard.objectives.multiple_choice.rows:make",
    task="multiple-choice",
    card=(
        "Its input is [rows, choices, tokens]: `tokenizer([question] * len(choices), choices, padding=True)` for each "
        "question."
    ),
    sections=frozenset(),
    metrics={"accuracy": True},
    row_shape="shardyard.objectives.multiple_choice.rows:row_shape",
    new_head=True,
)
