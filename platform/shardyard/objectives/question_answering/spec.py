"""The specification of `question_answering`."""

from __future__ import annotations

from shardyard.objectives.spec import ObjectiveSpec

SPEC = ObjectiveSpec(
    name="question_answering",
    loss="shardyard.objectives.question_answering.loss:make",
    head=("AutoModelForQuestionAnswering", "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES"),
    columns={"question": "text", "context": "text", "answers": "answers"},
    rows="shardyard.objectives.question_answering.rows:make",
    task="question-answering",
    card=(
        "`tokenizer(question, context)` makes its input. The answer lies between the tokens of the context with the "
        "largest sum of `start_logits` and `end_logits`; a larger sum at the first token means that there is none."
    ),
    sections=frozenset({"answering"}),
    metrics={"exact_match": True, "f1": True, "f1_answerable": True, "accuracy_unanswerable": True},
    row_shape="text",
    new_head=True,
)
