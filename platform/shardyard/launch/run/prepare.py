"""From a recipe to its plan: adds the tokenizer's vocabulary and the model's sizes, which pure planning cannot know.

torch and transformers are imported late: a plan with cached sizes does not need them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from shardyard.errors import DataError, ShardyardError
from shardyard.imports import import_at_once
from shardyard.launch.run.architecture_cache import keep, recall
from shardyard.objectives.registry import objective_spec
from shardyard.planning.architecture import Architecture
from shardyard.planning.findings import with_findings
from shardyard.planning.plan import RunPlan, World, make_plan
from shardyard.recipe.batching import streams_of
from shardyard.recipe.code import lead_to_kept
from shardyard.recipe.earlier import complete
from shardyard.recipe.isolation import leaves_gaps
from shardyard.recipe.loading.load import parse_recipe
from shardyard.recipe.mixture.weights import lacks_sizes
from shardyard.recipe.schema import Recipe
from shardyard.recipe.sources.files import matching
from shardyard.recipe.sources.token_sets import any_sets_of, recognised_tokens
from shardyard.recipe.sources.weight_files import weights_in
from shardyard.tracking.run.folder import RunFolder
from shardyard.units import format_count

# Share of filled positions above which a larger window gains next to nothing.
_FULL = 0.995
# Fields that are fixed in resolved.yaml when a run starts: precision, steps, and fields scaled with the steps.
_FIXED_SECTIONS = ("train", "schedule", "evaluate", "checkpoint", "tracking")


def prepare(recipe: Recipe, world: World, *, remember: bool = False) -> RunPlan:
    """The plan of `recipe` in `world`.

    Args:
        remember: use the disk cache of model sizes.

    Raises:
        DataError: the tokenizer cannot be loaded, the data for `train.epochs` is not local, or local conversations
            hold nothing to learn from.
        ModelError: the model cannot be built.
        RecipeError: the recipe cannot run in the world.
    """
    reasons = _check_rows(recipe)
    recipe = _with_sizes(recipe)
    known = recall(recipe) if remember else None
    architecture = known or _measure(recipe)
    if remember and known is None:
        keep(recipe, architecture)
    architecture, taught = _with_teacher(recipe, architecture)
    isolated = with_findings(recipe, architecture.findings)
    plan = make_plan(recipe, architecture, world, rows=_rows_of_a_pass(isolated, world))
    return replace(plan, reasons={**plan.reasons, **reasons, **taught, **_fullness(isolated, plan), **_tokens(recipe)})


def _with_teacher(recipe: Recipe, architecture: Architecture) -> tuple[Architecture, dict[str, str]]:
    """The sizes with the weights of the teacher, if they are on this machine, and what the plan says of them."""
    name = recipe.distillation.teacher
    if objective_spec(recipe.objective).frozen != "teacher" or name is None:
        return architecture, {}
    found = weights_in(Path(name).expanduser())
    if found is None:
        return architecture, {"parameters_bytes": f"without the teacher {name}, whose weights are not on this machine"}
    return replace(architecture, frozen_parameters=found), {
        "parameters_bytes": f"with {format_count(found)} weights of the teacher"
    }


def _tokens(recipe: Recipe) -> dict[str, str]:
    """Which local sources are read as tokens that were made before.

    Raises:
        DataError: files of token ids that the recipe names cannot be read with its tokenizer, or `data.tokenized` is
            `always` and there are none.
    """
    sources = [source for source in recipe.data.train if source.path is None or matching(source.path)]
    named = [source for source in sources if recognised_tokens(source, training=True) is not None]
    way = recipe.data.tokenized
    looks = way == "always" or (way == "auto" and any_sets_of(recipe.tokenizer, sources))
    if not named and not looks:
        return {}
    from shardyard.data.tokenized.making import why_not
    from shardyard.data.tokenized.opening import open_documents, tokens_in_words
    from shardyard.engine.components import make_components

    looks = looks and (way == "always" or why_not(objective_spec(recipe.objective), recipe) is None)
    try:
        inputs, found = make_components(recipe).format_inputs, list[str]()
    except (ShardyardError, OSError):
        if named or way == "always":
            raise
        return {}  # A plan needs no tokenizer; the run says what is wrong.
    for source in sources if looks else named:
        try:
            opened = open_documents(inputs, recipe.objective, source, training=True)
        except (ShardyardError, OSError):
            if source in named or way == "always":
                raise
            continue  # the run says what is wrong
        found += filter(None, [tokens_in_words(opened)])
    return {"tokenized": "; ".join(found)} if found else {}


def _fullness(recipe: Recipe, plan: RunPlan) -> dict[str, str]:
    """How full local data makes rows that may have gaps: the reason of `rows` as isolation, or of best-fit packing;
    nothing if that cannot be told here."""
    if not leaves_gaps(recipe):
        return {}
    from shardyard.data.stream.first_rows import ROWS_OF_AN_ESTIMATE, filled_share, is_local

    if not any(source.path is not None and is_local(source) for source in recipe.data.train):
        return {}
    from shardyard.engine.components import make_components

    try:
        share = filled_share(make_components(recipe).format_inputs, recipe.objective)
    except (ShardyardError, OSError):
        return {}  # the run says what is wrong
    if share is None:
        return {}
    filled = f"the first {ROWS_OF_AN_ESTIMATE} rows of the local data are "
    if plan.isolation == "rows":
        return {"isolation": f"{plan.reasons['isolation']}; {filled}{share:.0%} full"}
    larger = "; a larger data.shuffle_window fills more" if share < _FULL else ""
    return {"packing": f"{filled}{share:.1%} full{larger}"}


def _with_sizes(recipe: Recipe) -> Recipe:
    if not lacks_sizes(recipe.data):
        return recipe
    from shardyard.data.mixture.sizes import with_sizes

    return with_sizes(recipe)


def _rows_of_a_pass(recipe: Recipe, world: World) -> int | None:
    if recipe.train.epochs is None:
        return None
    from shardyard.data.stream.count import count_rows
    from shardyard.engine.components import make_components

    streams = streams_of(recipe, world.size)
    return count_rows(make_components(recipe).format_inputs, recipe.objective, recipe.train.seed, streams=streams)


def _check_rows(recipe: Recipe) -> dict[str, str]:
    """Make the first rows of local conversations and pairs, of which any may be left out.

    A tokenizer that is not on this machine is no reason to refuse a plan; without one nothing is checked.

    Returns:
        Reasons of the plan: which answers of conversations are trained, and why.
    """
    sources = (*recipe.data.train, *recipe.data.validation)
    spec = objective_spec(recipe.objective)
    if spec.layouts is None or all(source.path is None for source in sources):
        return {}
    from shardyard.data.chat import prepare_chat
    from shardyard.data.formats.inputs import FormatInputs
    from shardyard.data.stream.first_rows import check_first_rows, is_local
    from shardyard.data.tokenizers.tokenizer import load_tokenizer

    # Loading a tokenizer may ask the hub, which takes long without a network.
    if not any(source.path is not None and is_local(source) for source in sources):
        return {}
    if spec.sees:
        return _check_pictures(recipe)
    try:
        tokenizer = load_tokenizer(recipe.tokenizer, recipe.added_tokens)
    except DataError:
        return {}
    conversations = spec.layouts == "conversations"
    notes = prepare_chat(tokenizer, recipe.chat, all_answers=conversations)
    check_first_rows(FormatInputs(recipe.data, tokenizer, chat=recipe.chat), recipe.objective)
    return {"answers": notes.in_words()} if conversations else {}


def _check_pictures(recipe: Recipe) -> dict[str, str]:
    """Make the first rows with pictures, by the model's processor, if model and tokenizer are on this machine."""
    from shardyard.data.stream.first_rows import check_first_rows
    from shardyard.data.tokenizers.tokenizer import load_tokenizer
    from shardyard.engine.components import make_components

    place = recipe.model.pretrained
    if place is not None and not Path(place).expanduser().is_dir():
        return {}
    try:
        load_tokenizer(recipe.tokenizer, recipe.added_tokens)
    except DataError:
        return {}
    components = make_components(recipe)
    check_first_rows(components.format_inputs, recipe.objective)
    return {"answers": components.chat.in_words()} if components.chat is not None else {}


def recipe_in(folder: RunFolder) -> Recipe:
    """The recipe of a run, from its resolved.yaml, with the code files kept in the run folder."""
    fields = _resolved(folder)
    complete(fields)
    lead_to_kept(fields, folder.path)
    return parse_recipe(fields)


def as_before(folder: RunFolder) -> tuple[str, ...]:
    """Overrides with which a run of an earlier version goes on as it began: without probes, and with the tokens of its
    time."""
    try:
        fields = _resolved(folder)
        data, made = fields["data"], fields["model"].get("probes") or {}
    except (OSError, UnicodeError, YAMLError, TypeError, KeyError, AttributeError):
        return ()  # loading the recipe says what is wrong
    probes: tuple[str, ...] = () if "tokenizer" in made else ("model.probes.tokenizer=false",)
    if "isolation" not in data:
        probes = ("data.isolation=positions", "model.probes.causality=false", *probes)
    return probes if "special_tokens" in data else (*probes, "data.special_tokens=end")


def _resolved(folder: RunFolder) -> Any:
    return YAML(typ="safe", pure=True).load(folder.resolved.read_text(encoding="utf-8"))


def as_fixed(recipe: Recipe, folder: RunFolder) -> Recipe:
    """The recipe with the values fixed by earlier attempts of its run."""
    fixed = recipe_in(folder)
    return recipe.model_copy(update={name: getattr(fixed, name) for name in _FIXED_SECTIONS})


def _measure(recipe: Recipe) -> Architecture:
    import_at_once(
        "shardyard.data.multimodal.placeholders", "shardyard.engine.findings", "shardyard.models.size.measure"
    )
    from shardyard.data.multimodal.placeholders import own_processor_makes_rows
    from shardyard.engine.findings import find
    from shardyard.models.build import architecture_config
    from shardyard.models.size.measure import measure_recipe

    # Ids of special tokens do not affect sizes, but some models need one for padding or end of text.
    no_ids: dict[str, int | None] = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}
    # The same holds for the ids of tokens that stand for pictures.
    placeholders: dict[str, int] | None = {} if own_processor_makes_rows(recipe) else None
    if placeholders is not None:
        # Mllama's configuration needs a first token, which its tokenizer is given.
        no_ids["bos_token_id"] = 0
    config = architecture_config(
        recipe.model, vocabulary=_vocabulary(recipe), special_tokens=no_ids, placeholders=placeholders
    )
    return replace(measure_recipe(recipe, config), findings=find(recipe, config))


def _vocabulary(recipe: Recipe) -> int | None:
    """The vocabulary: from the recipe if given, because its tokenizer may be on a hub, else from the tokenizer."""
    from shardyard.data.multimodal.placeholders import model_tokenizer
    from shardyard.data.tokenizers.tokenizer import vocabulary_size

    if not objective_spec(recipe.objective).text:
        return None
    given = recipe.model.text_config.get("vocab_size")
    return int(given) if isinstance(given, int | float | str) else vocabulary_size(model_tokenizer(recipe))
