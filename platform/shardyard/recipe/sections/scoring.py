"""How predictions are scored: losses, preferences, teachers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import PlainSerializer, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import PydanticCustomError

from shardyard import plugins
from shardyard.errors import UsageError
from shardyard.objectives.registry import OBJECTIVES
from shardyard.recipe.sections.base import Section, described


def _one_of(value: Any, handler: ValidatorFunctionWrapHandler) -> str:
    """Accept a built-in name, a name from an installed package, or a reference, without importing code."""
    if not isinstance(value, str) or value in OBJECTIVES:
        return str(handler(value))
    if plugins.is_reference(value):
        return value
    try:
        others = plugins.installed("objectives", OBJECTIVES)
    except UsageError as error:
        raise PydanticCustomError("plugins", "{reason}", {"reason": str(error)}) from error
    if value in others:
        return value
    *names, last = (repr(name) for name in (*OBJECTIVES, *others))
    expected = f"{', '.join(names)} or {last}"
    raise PydanticCustomError("literal_error", "Input should be {expected}", {"expected": expected})


if TYPE_CHECKING:
    ObjectiveName = str
else:
    ObjectiveName = Annotated[Literal[OBJECTIVES], WrapValidator(_one_of), PlainSerializer(str)]


class Loss(Section):
    """The loss of a target."""

    name: Literal["cross_entropy", "focal"] = described("cross_entropy", "Loss function.")
    label_smoothing: float = described(
        0.0, "Probability mass that is spread evenly over all classes (Szegedy et al. 2016).", ge=0.0, lt=1.0
    )
    focal_gamma: float = described(
        2.0, "Focusing parameter of focal loss: larger values give well-classified targets less weight.", ge=0.0
    )
    z_loss: float = described(
        0.0,
        "Weight of the z-loss, the mean over target tokens of the squared logarithm of the softmax's denominator. It "
        "keeps logits from growing (Chowdhery et al. 2022, PaLM: 1e-4), in training, for objectives that predict "
        "tokens of a vocabulary.",
        ge=0.0,
    )


class Preference(Section):
    """Direct preference optimisation (Rafailov et al. 2023)."""

    beta: float = described(0.1, "Beta of DPO: how strongly the model is kept close to the reference model.", gt=0.0)
    label_smoothing: float = described(
        0.0, "Fraction of the preference labels that are assumed to be wrong.", ge=0.0, lt=0.5
    )


class Distillation(Section):
    """Learning from a teacher's probabilities (Hinton et al. 2015)."""

    teacher: str | None = described(
        None, "Hub id, folder, or run:NAME of the teacher, a model with the same tokenizer."
    )
    temperature: float = described(2.0, "Softmax temperature of teacher and student.", gt=0.0)
    weight: float = described(
        0.5, "Weight of the distillation loss; the loss of the labels has the rest.", ge=0.0, le=1.0
    )


class Answering(Section):
    """Answers to questions as spans of a context."""

    stride: int | None = described(
        None,
        "Tokens that neighbouring windows of a long context share. Default: a third of data.sequence_length.",
        "tokens",
        ge=0,
    )
    max_answer: int = described(30, "Longest answer that an evaluation considers.", "tokens", ge=1)
    unanswerable: bool = described(
        False, "Whether the data has questions without an answer in their context, as SQuAD 2.0 has."
    )


class Embedding(Section):
    """Vectors of texts, compared by their cosine."""

    pooling: Literal["mean", "cls", "last"] = described(
        "mean", "What becomes the vector: the mean over all tokens, the first token, or the last one (for decoders)."
    )
    loss: Literal["info_nce", "triplet", "margin"] = described(
        "info_nce",
        "info_nce finds the positive among all rows' positives and negatives; triplet compares each row's own negative "
        "by distance; margin wants the positive to be nearer than the others of all rows by a margin of the cosine.",
    )
    temperature: float = described(0.05, "Temperature of info_nce.", gt=0.0)
    symmetric: bool = described(False, "Whether info_nce also finds the query of each positive, as CLIP does.")
    margin: float = described(
        0.5, "Margin of triplet, in units of the distance of vectors of length 1, and of margin, of the cosine.", gt=0.0
    )
    query_prompt: str = described("", "Text before each query, such as 'query: '.")
    document_prompt: str = described("", "Text before each positive and negative, such as 'passage: '.")


class Ranking(Section):
    """Scores of documents for a query."""

    loss: Literal["binary", "listwise", "margin"] = described(
        "binary",
        "binary judges each document by itself (relevance from 0 to 1); listwise compares all documents of a query by "
        "a softmax (ListNet), margin each more relevant one with each less relevant one.",
    )
    margin: float = described(1.0, "Margin of the loss margin, in units of the scores.", gt=0.0)


class Regression(Section):
    """Predicting a number."""

    loss: Literal["mse", "mae", "huber"] = described("mse", "Squared error, absolute error, or Huber's loss.")
    delta: float = described(1.0, "Error up to which Huber's loss is quadratic, in units of the labels.", gt=0.0)
