"""The specification of `bert_pretraining`."""

from __future__ import annotations

from shardyard.objectives.spec import PRETRAINING, ObjectiveSpec

SPEC = ObjectiveSpec(
    name="bert_pretraining",
    loss="shardyard.objectives.bert_pretraining.loss:make",
    head=PRETRAINING,
    families=frozenset({"bert", "megatron-bert", "mobilebert"}),
    columns={"text": "text"},
    rows="sentence_pairs",
    task="fill-mask",
    sections=frozenset({"masking"}),
    metrics={"loss_mlm": False, "loss_nsp": False, "mlm_accuracy": True, "nsp_accuracy": True},
    row_shape="text",
    vocabulary=True,
)
