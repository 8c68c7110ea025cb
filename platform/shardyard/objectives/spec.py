"""The specification of an objective, from which all other tables follow.

Pure: neither this file nor `objectives/*/spec.py` imports torch, transformers or a room above. Code is named as
`module:function` and imported by whoever calls it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["text", "label", "image", "audio", "messages"]

# Recipe sections that only some objectives read; elsewhere they would change nothing.
OPTIONAL_SECTIONS = ("loss", "masking", "image", "audio", "preference", "distillation")

CAUSAL_LM = ("AutoModelForCausalLM", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES")
PRETRAINING = ("AutoModelForPreTraining", "MODEL_FOR_PRETRAINING_MAPPING_NAMES")


@dataclass(frozen=True)
class ObjectiveSpec:
    """One objective.

    name: what recipes call it.
    loss: `module:function`; called with `ObjectiveInputs`, it returns an `Objective`.
    head: the `Auto…` class of transformers whose models have the head, and the name of that class's table in
        transformers' `modeling_auto.py`. families: where only some of that table will do, which.
    columns: role → kind of what a row is made of. optional_columns: the same, where present.
    rows: the row format: a name of `data/formats/`, or `module:function`, called with the format's `FormatInputs`.
    task: what the Hugging Face hub calls the task of the model. card: a paragraph of the model card on how it is used.

    sections: those of OPTIONAL_SECTIONS that it reads.
    metrics: what an evaluation gives beside `loss`, with True where larger is better.
    row_shape: how the cost of a row is found: a name of `models/size/row_shapes.py`, or `module:function`, called with
        the model's configuration, `data` and `image`. None: packed tokens of a decoder, whose cost the plan computes.
    sequences: how many sequences a row of a decoder is made of.
    text: whether a tokenizer takes part. whole_batch: whether a step needs all rows of a rank in one micro-batch.
    frozen: a frozen model that it compares with: the initial weights (`reference`) or `distillation.teacher`.
    new_head: whether the model has a head that no checkpoint brings, which is trained beside adapters.
    experts: whether it adds the losses of routers, and experts may be spread over ranks.

    generates: whether the trained model continues a prompt; chat: as an answer, in the tokenizer's chat template;
    answers: with a text of its own, which does not begin with the prompt.
    decodes: whether an encoder–decoder writes a text, for metrics of decoded rows; reads_source: whether it answers
    about a source that `data.drop_inputs` drops; source_length: whether `data.source_length` limits that source.
    zero_shot: whether images and texts share a space, so that classes are found by their names.
    """

    name: str
    loss: str
    head: tuple[str, str]
    columns: Mapping[str, Kind]
    rows: str
    task: str
    card: str = ""
    families: frozenset[str] | None = None
    optional_columns: Mapping[str, Kind] = field(default_factory=dict)
    sections: frozenset[str] = frozenset({"loss"})
    metrics: Mapping[str, bool] = field(default_factory=dict)
    row_shape: str | None = None
    sequences: int = 1
    text: bool = True
    whole_batch: bool = False
    frozen: Literal["reference", "teacher"] | None = None
    new_head: bool = False
    experts: bool = False
    generates: bool = False
    chat: bool = False
    answers: bool = False
    decodes: bool = False
    reads_source: bool = False
    source_length: bool = False
    zero_shot: bool = False

    @property
    def auto_class(self) -> str:
        """The `Auto…` class of transformers."""
        return self.head[0]

    @property
    def all_columns(self) -> dict[str, Kind]:
        """Role → kind of everything that it may read."""
        return {**self.columns, **self.optional_columns}
