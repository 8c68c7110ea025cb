"""The default precision of a run: bf16 if the devices have units for it, else fp32."""

from __future__ import annotations

from dataclasses import dataclass

from shardyard.recipe.schema import Precision, Recipe

GIVEN = "given by train.precision"


@dataclass(frozen=True)
class Bf16:
    """Whether the training devices have bf16 units; None if unknown. `why` is the reason in words."""

    units: bool | None = None
    why: str = ""


@dataclass(frozen=True)
class ChosenPrecision:
    """The precision of a run and the reason for it. `known`: whether it is final."""

    precision: Precision
    known: bool
    why: str


def choose_precision(given: Precision | None, bf16: Bf16, *, gpu: bool) -> ChosenPrecision:
    """The precision of a recipe on devices of one kind.

    GPUs without bf16 units get fp32 instead of fp16: the narrow range of fp16 requires a loss scale and makes some
    models diverge, so a recipe must set it explicitly.
    """
    if given is not None:
        slow = (
            f", but {bf16.why}: slow; launch with `-s train.precision=fp32`"
            if given == "bf16" and bf16.units is False
            else ""
        )
        return ChosenPrecision(given, known=True, why=GIVEN + slow)
    if bf16.units is True:
        return ChosenPrecision("bf16", known=True, why=bf16.why)
    if bf16.units is False:
        faster = "; `-s train.precision=fp16` is faster, with a narrower range" if gpu else ""
        return ChosenPrecision("fp32", known=True, why=bf16.why + faster)
    if gpu:
        why = "GPUs from compute capability 8.0 on have bf16 units; those of the workers are checked when it starts"
        return ChosenPrecision("bf16", known=False, why=why)
    why = "decided when it starts: bf16 if the CPUs of all workers have units for it"
    return ChosenPrecision("fp32", known=False, why=why)


def with_precision(recipe: Recipe, precision: Precision) -> Recipe:
    """The recipe with `train.precision` set."""
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"precision": precision})})


def precision_of(recipe: Recipe) -> Precision:
    """The precision of a recipe that has been planned."""
    assert recipe.train.precision is not None, "fixed by the plan before a run starts"
    return recipe.train.precision
