"""Rules for encoder–decoders: decoding, and the lengths of source and target."""

from __future__ import annotations

from collections.abc import Iterator

from shardyard.objectives.registry import objective_spec, specs
from shardyard.recipe import families
from shardyard.recipe.fields import Path
from shardyard.recipe.schema import Recipe

Finding = tuple[Path, str]

# Positions of Whisper's encoder; its features are computed for whole seconds.
_POSITIONS_PER_SECOND = 50


def decoder_rules(recipe: Recipe) -> Iterator[Finding]:
    """All findings about the fields that only encoder–decoders read."""
    spec = objective_spec(recipe.objective)
    if recipe.data.source_length is not None and not spec.source_length:
        owners = ", ".join(other.name for other in specs() if other.source_length)
        yield ("data", "source_length"), f"does nothing for {recipe.objective}, only for {owners}; remove it"
    if recipe.evaluate.rouge != "off" and "rouge1" not in spec.metrics:
        owners = ", ".join(other.name for other in specs() if "rouge1" in other.metrics)
        yield ("evaluate", "rouge"), f"does nothing for {recipe.objective}, only for {owners}; remove it"
    if "audio" in spec.sections:
        yield from _unheard(recipe)
    if spec.decodes:
        yield from _decoding(recipe)
        if recipe.audio.ctc and recipe.model.family != "whisper":
            yield (
                ("audio", "ctc"),
                (
                    f"makes the encoder of whisper spell, and {recipe.model.family} has none of its kind; take it out, "
                    "or train an encoder alone with the objective speech_ctc"
                ),
            )
        if recipe.model.pretrained is None:
            yield from _lengths(recipe)
            yield from _audio(recipe)
        return
    if recipe.evaluate.generate_rows:
        yield ("evaluate", "generate_rows"), f"{recipe.objective} has no decoded metrics; remove it"
    if recipe.evaluate.beams > 1:
        yield ("evaluate", "beams"), f"{recipe.objective} has no decoded metrics; remove it"
    if recipe.data.drop_inputs and not spec.reads_source:
        yield ("data", "drop_inputs"), f"{recipe.objective} has no inputs to drop; remove the field"


def _unheard(recipe: Recipe) -> Iterator[Finding]:
    """Fields of `audio` that concern transcripts, where the objective has none, or spells them anyway."""
    audio, objective = recipe.audio, recipe.objective
    names = () if objective_spec(objective).hears else ("join", "plain_text")
    for name in (*names, *(() if objective_spec(objective).decodes else ("ctc",))):
        if getattr(audio, name) != type(audio).model_fields[name].default:
            yield ("audio", name), f"does nothing for {objective}; take it out"


def _decoding(recipe: Recipe) -> Iterator[Finding]:
    stopping = recipe.evaluate.early_stopping
    metric = stopping.metric.rpartition("/")[2] if stopping is not None else ""
    if metric.startswith("rouge") and recipe.evaluate.rouge == "off":
        yield ("evaluate", "early_stopping", "metric"), f"{metric} is not measured; set evaluate.rouge"
    if recipe.evaluate.generate_rows:
        return
    if recipe.evaluate.rouge != "off":
        yield ("evaluate", "rouge"), "does nothing where no rows are decoded; set evaluate.generate_rows"
    if recipe.evaluate.beams > 1:
        yield ("evaluate", "beams"), "does nothing where no rows are decoded; set evaluate.generate_rows"
    if metric in objective_spec(recipe.objective).metrics.keys() - {"perplexity"}:
        yield (
            ("evaluate", "early_stopping", "metric"),
            f"{metric} is measured on decoded rows, and none are decoded; set evaluate.generate_rows",
        )


def _lengths(recipe: Recipe) -> Iterator[Finding]:
    family, config = recipe.model.family, recipe.model.config
    for field, key in (("source_length", "max_position_embeddings"), ("sequence_length", "max_target_positions")):
        length, positions = getattr(recipe.data, field), families.config_value(family, config, key)
        if length is not None and type(positions) is int and length > positions:
            yield (
                ("data", field),
                (
                    f"{length} tokens are more than the {positions} positions of the model; set model.config.{key} to "
                    f"{length}, or shorten the rows"
                ),
            )


def _audio(recipe: Recipe) -> Iterator[Finding]:
    family, config = recipe.model.family, recipe.model.config
    positions = families.config_value(family, config, "max_source_positions") if family == "whisper" else None
    if type(positions) is int and positions % _POSITIONS_PER_SECOND:
        better = _POSITIONS_PER_SECOND * max(1, round(positions / _POSITIONS_PER_SECOND))
        yield (
            ("model", "config", "max_source_positions"),
            (
                f"{positions} positions are not a whole number of seconds ({_POSITIONS_PER_SECOND} positions each); "
                f"set {better}"
            ),
        )
    if config.get("apply_spec_augment"):
        yield (
            ("model", "config", "apply_spec_augment"),
            (
                "masks with random numbers that a resumed run would not repeat; set audio.time_masks and "
                "audio.frequency_masks instead"
            ),
        )
