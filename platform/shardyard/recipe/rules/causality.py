"""What is known of encoders under causal objectives without building them; a plan probes every model anyway.

The names are those that the probes found (docs/develop/isolation.md); a test compares them.
"""

from __future__ import annotations

from collections.abc import Iterator

from shardyard.objectives.registry import objective_spec
from shardyard.recipe.families import config_value
from shardyard.recipe.fields import Path
from shardyard.recipe.schema import Recipe

Finding = tuple[Path, str]

_CAUSAL = "AutoModelForCausalLM"
# Causal with `is_decoder`, which a plan sets.
ENCODERS = frozenset(
    {
        "bert",
        "bert-generation",
        "big_bird",
        "camembert",
        "data2vec-text",
        "electra",
        "ernie",
        "megatron-bert",
        "rembert",
        "roberta",
        "roberta-prelayernorm",
        "roc_bert",
        "roformer",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    }
)
# Not causal by default; some are with a setting.
NOT_CAUSAL: dict[str, tuple[str, object] | None] = {
    "cpmant": None,
    "xlm": ("causal", True),
    "xlnet": ("attn_type", "uni"),
}


def causality_rules(recipe: Recipe) -> Iterator[Finding]:
    """A family in which a token sees those after it, and would see its own targets."""
    family = recipe.model.family
    if not _matters(recipe) or family not in NOT_CAUSAL:
        return
    setting = NOT_CAUSAL[family]
    if setting is not None and config_value(family, recipe.model.config, setting[0]) == setting[1]:
        return
    causal = "" if setting is None else f"; `-s model.config.{setting[0]}={_shown(setting[1])}` makes it causal"
    yield (
        ("model", "family"),
        (
            f"{family} is not causal: a token sees those after it, so {recipe.objective} would show it its own targets"
            f"{causal}. Choose a decoder, such as llama or gpt2, or an objective for encoders, such as masked_lm"
        ),
    )


def causality_note(recipe: Recipe) -> str | None:
    """What a plan will set, so that an encoder does not see its own targets; None if it sets nothing."""
    if not _matters(recipe) or recipe.model.family not in ENCODERS or "is_decoder" in recipe.model.config:
        return None
    return (
        f"{recipe.model.family} is an encoder, in which a token sees those after it; plan and launch set is_decoder, "
        "after a probe has shown that it is causal then"
    )


def _matters(recipe: Recipe) -> bool:
    """Whether the model's own configuration decides; that of pretrained weights is read by the plan."""
    model = recipe.model
    causal = objective_spec(recipe.objective).auto_class == _CAUSAL
    return causal and model.probes.causality and model.module is None and model.pretrained is None


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
