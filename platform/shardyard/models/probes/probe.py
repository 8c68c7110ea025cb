"""All probes of a recipe's model: what they found, and what follows from it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from transformers import PreTrainedConfig

from shardyard.errors import ModelError
from shardyard.models.outside import ModuleConfig
from shardyard.models.pretrained import pretrained_config
from shardyard.models.probes.causality import look_ahead
from shardyard.models.probes.documents import find_isolation
from shardyard.models.probes.narrow import Narrow, NotNarrowedError, narrow_model
from shardyard.models.probes.padding import padding_leak
from shardyard.models.probes.tokens import TOLERANCE, tolerance_of
from shardyard.models.probes.training import is_untied, randomness, without_gradient
from shardyard.objectives.registry import objective_spec
from shardyard.planning.findings import Findings
from shardyard.recipe.isolation import ISOLATIONS, is_packed
from shardyard.recipe.schema import Recipe

CAUSAL = "AutoModelForCausalLM"
# Heads whose logits follow from tokens alone.
_HEADS = frozenset(
    {
        CAUSAL,
        "AutoModelForMaskedLM",
        "AutoModelForSequenceClassification",
        "AutoModelForTokenClassification",
        "AutoModelForSeq2SeqLM",
    }
)
_OFF = "`-s model.probes.{}=false` leaves this check out"
# Names that a notice lists.
_MOST_NAMES = 4


@dataclass(frozen=True)
class _Subject:
    """A recipe, the configuration of its model, and a narrow copy of it."""

    recipe: Recipe
    config: PreTrainedConfig
    narrow: Narrow

    @property
    def family(self) -> str:
        return self.recipe.model.label


def is_probed(recipe: Recipe, config: PreTrainedConfig) -> bool:
    """Whether a recipe's model reads text alone and is a family of transformers."""
    return not isinstance(config, ModuleConfig) and objective_spec(recipe.objective).auto_class in _HEADS


def probe_recipe(recipe: Recipe, config: PreTrainedConfig) -> Findings:
    """The findings of the probes that `model.probes` asks for, on a narrow copy of the model, in about a second.

    Args:
        config: of the recipe's model, as `architecture_config` makes it.
    """
    if not is_probed(recipe, config) or not any(recipe.model.probes.model_dump().values()):
        return Findings()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # narrow copies are too small for more
    try:
        return _probe(recipe, config, objective_spec(recipe.objective).auto_class)
    finally:
        torch.set_num_threads(threads)


def _probe(recipe: Recipe, config: PreTrainedConfig, auto: str) -> Findings:
    findings = Findings()
    try:
        subject = _Subject(recipe, config, _narrow(recipe, config, auto))
        if auto == CAUSAL and recipe.model.probes.causality:
            subject, findings = _causality(subject)
    except NotNarrowedError as error:
        return _refused_attention(recipe, config, auto) or _unprobed(recipe, str(error))
    if auto == CAUSAL and recipe.model.probes.isolation and is_packed(recipe):
        findings = _isolation(subject, findings)
    return replace(findings, notices=findings.notices + _notices(subject))


def _narrow(recipe: Recipe, config: PreTrainedConfig, auto: str) -> Narrow:
    # FlashAttention needs a GPU. Where transformers derives a mask from position ids, it passes document bounds too.
    attention = None if (recipe.model.attention or "").startswith("flash") else recipe.model.attention
    return narrow_model(config, auto, attention=attention, row=recipe.data.sequence_length)


def _refused_attention(recipe: Recipe, config: PreTrainedConfig, auto: str) -> Findings | None:
    """The refusal of an implementation of attention without which the model can be built; None if that is not it."""
    model = recipe.model
    if model.attention not in ("sdpa", "eager"):
        return None
    default = recipe.model_copy(update={"model": model.model_copy(update={"attention": None})})
    try:
        _narrow(default, config, auto)
    except NotNarrowedError:
        return None
    refusal = f"transformers computes {model.label} in another way than {model.attention}; leave it out"
    return Findings(refusals=(("model.attention", refusal),))


def _unprobed(recipe: Recipe, why: str) -> Findings:
    causal = objective_spec(recipe.objective).auto_class == CAUSAL
    unknown = "whether a token sees those after it" if causal else "what padding does"
    notice = f"the model was not probed: {why}; {unknown} is not known"
    if not causal or not is_packed(recipe):
        return Findings(notices=(notice,))
    return Findings(
        "rows", "nothing else is known to isolate documents, because the model was not probed", notices=(notice,)
    )


def _causality(subject: _Subject) -> tuple[_Subject, Findings]:
    """The model as a decoder if it is causal only so; refused if it is not causal at all."""
    ahead = look_ahead(subject.narrow.model)
    if ahead <= tolerance_of(subject.narrow.model):
        return subject, Findings()
    recipe, config = subject.recipe, subject.config
    if hasattr(config, "is_decoder") and "is_decoder" not in recipe.model.config:
        as_decoder = type(config).from_dict({**config.to_dict(), "is_decoder": True})
        narrow = _narrow(recipe, as_decoder, CAUSAL)
        if look_ahead(narrow.model) <= tolerance_of(narrow.model):
            notice = f"is_decoder is set, because without it a token of {subject.family} sees those after it"
            return _Subject(recipe, as_decoder, narrow), Findings(decoder=True, notices=(notice,))
    refusal = (
        f"{subject.family} is not causal: a changed token moves the logits before it by {ahead:.1%} of their spread, "
        f"so {recipe.objective} would show it its own targets{_what_makes_causal(subject)}. Choose a decoder, such as "
        "llama or gpt2, or an objective for encoders, such as masked_lm; "
        f"{_OFF.format('causality')}"
    )
    return subject, Findings(refusals=(("model.family", refusal),))


def _what_makes_causal(subject: _Subject) -> str:
    """The setting of the family with which it is causal, for a refusal; empty if there is none."""
    for name, value, shown in (("attn_type", "uni", "uni"), ("causal", True, "true")):
        if not hasattr(subject.config, name):
            continue
        config = type(subject.config).from_dict({**subject.config.to_dict(), name: value})
        with contextlib.suppress(NotNarrowedError):
            model = _narrow(subject.recipe, config, CAUSAL).model
            if look_ahead(model) <= tolerance_of(model):
                return f"; `-s model.config.{name}={shown}` makes it causal"
    return ""


def _isolation(subject: _Subject, findings: Findings) -> Findings:
    recipe = subject.recipe
    models = [subject.narrow.model, *_teacher(recipe)]
    flash = (recipe.model.attention or "").startswith("flash")
    found = find_isolation(models, [way for way in ISOLATIONS if not flash or way != "mask"])
    return replace(findings, isolation=found.isolation, isolation_why=found.why)


def _teacher(recipe: Recipe) -> list[Any]:
    """A narrow copy of the teacher, which reads the same rows; none if there is no teacher on this machine."""
    name = recipe.distillation.teacher
    if objective_spec(recipe.objective).frozen != "teacher" or name is None:
        return []
    try:
        return [_narrow(recipe, pretrained_config(name), CAUSAL).model]
    except (OSError, ValueError, ModelError):
        return []


def _notices(subject: _Subject) -> tuple[str, ...]:
    asked, recipe, model = subject.recipe.model.probes, subject.recipe, subject.narrow.model
    dropout, padded = recipe.model.dropout, objective_spec(recipe.objective).rows != "packed"
    tries: tuple[tuple[bool, Callable[[], str | None]], ...] = (
        (asked.padding and padded, lambda: _padding(subject.family, model)),
        (asked.dropout and dropout is not None, lambda: _dropout(subject.family, model, dropout or 0.0)),
        (asked.tied_weights, lambda: _tied(subject.family, model)),
        (asked.gradient and recipe.model.adapter is None, lambda: _gradient(model, recipe.model.freeze)),
    )
    found = []
    for wanted, tried in tries:
        # Families that take more than tokens, or particular ones, refuse these with any exception; they are not tried.
        with contextlib.suppress(Exception):
            found.append(tried() if wanted else None)
    return tuple(notice for notice in found if notice is not None)


def _tied(family: str, model: Any) -> str | None:
    if not is_untied(model):
        return None
    return f"tie_word_embeddings is true, but {family} has different weights for embedding and head"


def _padding(family: str, model: Any) -> str | None:
    leaked = padding_leak(model)
    if leaked <= TOLERANCE:
        return None
    return (
        f"padding is not without effect in {family}: behind a text it moves logits by {leaked:.1%} of their spread, so "
        "results depend on the other rows of a batch"
    )


def _dropout(family: str, model: Any, asked: float) -> str | None:
    differ = randomness(model)
    if asked > 0 and differ == 0:
        return f"model.dropout {asked:g} has no effect: {family} has no dropout"
    if asked == 0 and differ > TOLERANCE:
        return f"model.dropout is 0, but training is random in {family}, which drops layers or adds noise"
    return None


def _gradient(model: Any, frozen: list[str]) -> str | None:
    names = [name for name in without_gradient(model) if not any(fnmatchcase(name, one) for one in frozen)]
    if not names:
        return None
    listed = ", ".join(names[:_MOST_NAMES]) + (", …" if len(names) > _MOST_NAMES else "")
    return f"no gradient reaches {len(names)} weights, which stay as they are: {listed}"
