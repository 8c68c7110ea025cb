"""The specification of an objective, from which all other tables of objectives are derived.

Pure: neither this file nor `objectives/*/spec.py` imports torch, transformers or a higher layer. Code is referred to as
`module:function` and imported by its caller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

# `label` is a whole number, `texts` a list of texts, `tags` a list of whole numbers or of names, `answers` the texts
# and places of answers, as in SQuAD, `number` any number, `numbers` a list of them.
Kind = Literal[
    "text", "label", "image", "audio", "messages", "texts", "tags", "answers", "number", "numbers", "segments"
]  # fmt: skip

# Recipe sections that only some objectives read; they have no effect on others.
OPTIONAL_SECTIONS = (
    "loss",
    "masking",
    "image",
    "audio",
    "chat",
    "preference",
    "distillation",
    "answering",
    "embedding",
    "ranking",
    "regression",
)

CAUSAL_LM = ("AutoModelForCausalLM", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES")
PRETRAINING = ("AutoModelForPreTraining", "MODEL_FOR_PRETRAINING_MAPPING_NAMES")
TEXT_ENCODING = ("AutoModelForTextEncoding", "MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES")
MASKED_IMAGES = ("AutoModelForMaskedImageModeling", "MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING_NAMES")


@dataclass(frozen=True)
class ObjectiveSpec:
    """One objective.

    name: its name in recipes.
    loss: `module:function`; called with `ObjectiveInputs`, it returns an `Objective`.
    head: the `Auto…` class of transformers whose models have the head, and the name of that class's table in
        transformers' `modeling_auto.py`. families: the supported entries of that table, if not all of them. tables:
        only entries that one of these further tables has, too. other_heads: model type → head, of model types that have
        another one for the same task. refusals: why an entry is not supported, after its name.
    columns: role → kind of each column that a row needs. optional_columns: columns that it uses if present.
    layouts: the layouts that are recognised by their columns (`recipe/layouts.py`); the first has the roles of
        `columns`.
    rows: the row format: a name of `data/formats/`, or `module:function`, called with the format's `FormatInputs`.
    task: the model's task on the Hugging Face hub. card: a paragraph of the model card on how to use the model.

    sections: the OPTIONAL_SECTIONS that it reads.
    metrics: metrics of an evaluation in addition to `loss`; True if larger is better.
    row_shape: how the cost of a row is measured: a name of `models/size/row_shapes.py`, or `module:function`, called
        with the model's configuration, `data` and `image`. None: packed tokens of a decoder; the plan computes its cost
        by a formula.
    sequences: number of sequences in a row of a decoder. texts: number of texts in a row that the model reads one by
        one, as data sets usually have; their cost is counted for so many.
    text: whether it uses a tokenizer. whole_batch: whether a step needs all rows of a rank in one micro-batch.
    frozen: the frozen model that it needs: the initial weights (`reference`) or `distillation.teacher`.
    new_head: whether the model has a head that no checkpoint contains, which is trained along with adapters.
    classes: whether that head predicts classes, which `model.labels` names. single_output: whether it predicts one
        number. problem_type: its name in transformers' configuration, by which pipelines choose between softmax,
        sigmoid and plain numbers.
    experts: whether it adds router losses, and experts may be distributed over ranks.

    generates: whether the trained model continues a prompt; chat: as an answer, in the tokenizer's chat template;
    answers: with a separate text that does not begin with the prompt. sees: whether the trained model answers a prompt
    about pictures. hears: whether it writes what a recording says.
    predicts: `module:function` that says in words what the model predicts for a text (`objectives/predictions.py`).
    decodes: whether an encoder–decoder writes a text, for metrics of decoded rows; reads_source: whether it answers
    about a source that `data.drop_inputs` drops; source_length: whether `data.source_length` limits that source.
    zero_shot: whether images and texts share an embedding space, so that class names can classify images.
    vocabulary: whether its logits are those of tokens, and may be computed for some tokens at a time.
    """

    name: str
    loss: str
    head: tuple[str, str]
    columns: Mapping[str, Kind]
    rows: str
    task: str
    card: str = ""
    families: frozenset[str] | None = None
    other_heads: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    tables: tuple[str, ...] = ()
    refusals: Mapping[str, str] = field(default_factory=dict)
    optional_columns: Mapping[str, Kind] = field(default_factory=dict)
    layouts: Literal["conversations", "pairs", "pictures"] | None = None
    sections: frozenset[str] = frozenset({"loss"})
    metrics: Mapping[str, bool] = field(default_factory=dict)
    row_shape: str | None = None
    sequences: int = 1
    texts: int = 1
    text: bool = True
    whole_batch: bool = False
    frozen: Literal["reference", "teacher"] | None = None
    new_head: bool = False
    classes: bool = False
    single_output: bool = False
    problem_type: str | None = None
    experts: bool = False
    generates: bool = False
    chat: bool = False
    answers: bool = False
    sees: bool = False
    hears: bool = False
    predicts: str | None = None
    decodes: bool = False
    reads_source: bool = False
    source_length: bool = False
    zero_shot: bool = False
    vocabulary: bool = False

    @property
    def auto_class(self) -> str:
        """The `Auto…` class of transformers for most model types."""
        return self.head[0]

    def auto_class_of(self, family: str | None) -> str:
        """The `Auto…` class of transformers for a model type."""
        return self.other_heads.get(family or "", self.head)[0]

    @property
    def all_columns(self) -> dict[str, Kind]:
        """Role → kind of all columns that it may read."""
        return {**self.columns, **self.optional_columns}
