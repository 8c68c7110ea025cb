"""Rules for the model: its family, its configuration, its tokenizer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path as FilePath
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from shardyard import plugins
from shardyard.objectives.registry import objective_spec, specs
from shardyard.recipe import families
from shardyard.recipe.catalog.shipped import find_tokenizer_spec, is_file, tokenizer_specs
from shardyard.recipe.fields import Path
from shardyard.recipe.initial_weights import kind_of
from shardyard.recipe.loading.problems import show
from shardyard.recipe.schema import Recipe
from shardyard.recipe.sections.model import MODULE
from shardyard.suggest import suggestion

Finding = tuple[Path, str]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# Hub ids from the time before names had an organisation prefix.
_OLD_HUB_IDS = re.compile(
    r"(gpt2|distilgpt2|openai-gpt|bert|distilbert|roberta|distilroberta|xlm|xlnet|albert|camembert|t5|ctrl|transfo-xl)"
    r"(-[a-z0-9]+)*(-v\d)?"
)
_EXPERT_COUNTS = frozenset({"num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"})
# Families whose heads share a width other than the hidden size: that times this.
_ATTENDED_OVER_HIDDEN = {"zamba": 2, "zamba2": 2}
_PYTHON = {"int": int, "float": float, "str": str, "bool": bool, "list": list, "dict": dict, "tuple": list}
_WORDS = {
    "int": "a whole number",
    "float": "a decimal number",
    "str": "text",
    "bool": "true or false",
    "list": "a list",
    "dict": "a section of keys",
    "tuple": "a list",
    "None": "null",
}


def model_rules(recipe: Recipe) -> Iterator[Finding]:
    """All findings about `model` and `tokenizer`."""
    yield from _tokenizer(recipe)
    yield from _pretrained(recipe)
    yield from _settings(recipe)
    if recipe.model.module is not None or recipe.model.family == MODULE:
        yield from _module(recipe)
        yield from _muon(recipe)
        return
    known = families.families_with(objective_spec(recipe.objective))
    if recipe.model.family not in known:
        yield ("model", "family"), _unsupported(recipe.model.family, recipe.objective, known)
        return
    yield from _config(recipe)
    yield from _shape(recipe)
    yield from _muon(recipe)


def _unsupported(family: str, objective: str, known: frozenset[str]) -> str:
    """Why a family cannot be trained for an objective: what is missing in whose code, and what is supported."""
    spec = objective_spec(objective)
    if family in families.families_with_head(spec):
        listed = ", ".join(sorted(known))
        if spec.source_length:
            return f"{objective} trains encoder–decoders, and {family!r} is none; it trains {listed}"
        if family in spec.refusals:
            return f"{family} {spec.refusals[family]}; {objective} trains {listed}"
        return f"Shardyard does not train {family} for {objective} yet; it trains {listed}"
    if family in families.all_families():
        others = [other.name for other in specs() if family in families.families_with(other)]
        trained = f", and Shardyard trains it for {', '.join(others)}" if others else ""
        lacking = f"transformers has {family!r}, but without the {spec.auto_class} that {objective} needs{trained}"
        return f"{lacking}; {suggestion(family, known)}"
    return f"transformers has no model of type {family!r} for the objective {objective}; {suggestion(family, known)}"


def _module(recipe: Recipe) -> Iterator[Finding]:
    """Settings that cannot be combined with a custom module. Its code is imported when the recipe is planned."""
    model = recipe.model
    if model.module is None:
        yield ("model", "family"), "module stands for a torch nn.Module of yours; name it in model.module"
        return
    if model.family != MODULE:
        yield (
            ("model", "family"),
            f"is {model.family}, but model.module brings the model; write {MODULE}, or take the family out",
        )
    problem = plugins.problem_of("models", model.module)
    if problem is not None:
        yield ("model", "module"), problem
    if model.attention is not None:
        yield ("model", "attention"), "does nothing for model.module, which computes attention itself; take it out"
    if model.adapter is not None:
        yield ("model", "adapter"), "adapts families of transformers, not model.module; take it out"
    if recipe.evaluate.generate_rows:
        yield ("evaluate", "generate_rows"), "decodes with models of transformers, not with model.module; take it out"
    if objective_spec(recipe.objective).frozen == "reference":
        yield (
            ("objective",),
            f"{recipe.objective} compares with a frozen copy of a model of transformers, not of model.module",
        )
    if model.pretrained is not None and kind_of(model.pretrained) == "other" and not _exists(model.pretrained):
        yield ("model", "pretrained"), f"no folder {model.pretrained!r}; weights of model.module are final/ of a run"


def _config(recipe: Recipe) -> Iterator[Finding]:
    """Check keys and types of model.config against the family's configuration class."""
    family, fields = recipe.model.family, families.config_fields(recipe.model.family)
    if fields is None:
        return
    for key, value in recipe.model.config.items():
        path = ("model", "config", key)
        if key not in fields.names:
            yield path, f"unknown key {key!r} of {family}; {suggestion(key, fields.names)}"
            continue
        own = fields.own_name(key)
        if own != key and own in recipe.model.config:
            yield path, f"means the same as {own} in {family}; keep one of them"
        kinds = fields.kinds.get(own, frozenset())
        if kinds and not any(_is(value, kind) for kind in kinds):
            expected = " or ".join(_WORDS[kind] for kind in sorted(kinds))
            hint = f"; write {float(value)}" if type(value) is int and "float" in kinds else ""
            yield path, f"must be {expected}, got {show(value)}{hint}"
        elif own in ("hidden_act", "activation_function") and isinstance(value, str):
            names = families.activation_names()
            if names and value not in names:
                yield path, f"transformers has no activation {value!r}; {suggestion(value, names)}"


def _is(value: Any, kind: str) -> bool:
    if kind == "None":
        return value is None
    return type(value) is _PYTHON[kind]


def effective_config(recipe: Recipe) -> Mapping[str, Any] | None:
    """The configuration as far as known: of a local pretrained folder, with overrides; None for one on the hub."""
    if recipe.model.pretrained is None:
        return recipe.model.config
    try:
        text = (FilePath(recipe.model.pretrained).expanduser() / "config.json").read_text(encoding="utf-8")
        stored = json.loads(text)
    except (OSError, ValueError, RuntimeError):
        return None
    return {**stored, **recipe.model.config} if isinstance(stored, dict) else None


def _shape(recipe: Recipe) -> Iterator[Finding]:
    config = effective_config(recipe)
    if config is None:
        return
    sizes = Sizes(recipe.model.family, config)
    positions, length = sizes["max_position_embeddings"], recipe.data.sequence_length
    if positions and length and length > positions:
        name = sizes.name("max_position_embeddings")
        yield (
            ("data", "sequence_length"),
            (
                f"{length} tokens are more than the {positions} positions of the model; set model.config.{name} to "
                f"{length}, or shorten the rows"
            ),
        )
    hidden, heads, groups = sizes["hidden_size"], sizes["num_attention_heads"], sizes["num_key_value_heads"]
    factor = _ATTENDED_OVER_HIDDEN.get(recipe.model.family, 1)
    if hidden and heads and hidden * factor % heads and not sizes["head_dim"]:
        yield (
            _config_path(recipe, sizes.name("hidden_size")),
            (
                f"{sizes.name('hidden_size')} {hidden} is not divisible by {sizes.name('num_attention_heads')} {heads}"
                f"; {heads * max(1, round(hidden / heads))} is"
            ),
        )
    if heads and groups and heads % groups:
        yield (
            _config_path(recipe, sizes.name("num_key_value_heads")),
            (f"num_attention_heads {heads} is not divisible by num_key_value_heads {groups}; set a divisor of {heads}"),
        )


class Sizes:
    """Positive whole numbers of a configuration by standard name; None for unknown or other values."""

    def __init__(self, family: str, config: Mapping[str, Any]) -> None:
        self.family, self.config = family, config

    def __getitem__(self, standard: str) -> int | None:
        value = families.config_value(self.family, self.config, standard)
        return value if type(value) is int and value > 0 else None

    def name(self, standard: str) -> str:
        """The key to write in a recipe."""
        fields = families.config_fields(self.family)
        return fields.own_name(standard) if fields is not None else standard


def _config_path(recipe: Recipe, name: str) -> Path:
    return ("model", "config", name) if name in recipe.model.config else ("model", "config")


def _muon(recipe: Recipe) -> Iterator[Finding]:
    """DeepSpeed's BF16 optimizer, used at stage 1 in bf16, rejects Muon for the stacked weights of experts.

    From stage 1, DeepSpeed clips after orthogonalising, when the norm is that of the update (about the root of the
    number of rows, summed over matrices) instead of the gradient: every update would shrink to a fraction.
    """
    if recipe.optimizer.name == "muon" and recipe.zero.stage > 0 and recipe.train.gradient_clipping > 0:
        clipped = "but with muon DeepSpeed would clip its orthogonalised updates, whose norm is fixed and large"
        yield (
            ("train", "gradient_clipping"),
            f"is {recipe.train.gradient_clipping:g}, {clipped}; set it to 0, or zero.stage to 0",
        )
    fields = families.config_fields(recipe.model.family)
    experts = fields is not None and bool(fields.names & _EXPERT_COUNTS)
    # The derived precision may be bf16.
    stage_1_bf16 = recipe.zero.stage == 1 and recipe.train.precision in ("bf16", None)
    if recipe.optimizer.name == "muon" and stage_1_bf16 and experts:
        yield (
            ("optimizer", "name"),
            f"DeepSpeed's muon takes only matrices in bf16 at stage 1; {recipe.model.family} has experts: use stage 2",
        )


def _logits_chunk(recipe: Recipe) -> Iterator[Finding]:
    path = ("model", "logits_chunk")
    if not objective_spec(recipe.objective).vocabulary:
        yield path, f"does not apply: {recipe.objective} predicts no tokens of a vocabulary; remove it"
    elif recipe.model.module is not None:
        yield path, "needs a family of transformers, whose output layer is known; remove it"


def _settings(recipe: Recipe) -> Iterator[Finding]:
    """Check switches of the platform against the same switches in the configuration."""
    model = recipe.model
    if model.checkpointing != "none" and model.config.get("use_cache") is True:
        yield (
            ("model", "config", "use_cache"),
            ("keeps what activation_checkpointing drops; remove it, or turn model.activation_checkpointing off"),
        )
    if model.checkpointing == "none" and model.activation_checkpointing is not None:
        for name, usual in (("offload_activations", False), ("activation_checkpointing_interval", 1)):
            if getattr(model, name) != usual:
                yield ("model", name), "needs model.activation_checkpointing selective or full; set it, or remove this"
    if model.compile and model.offload_activations and model.checkpointing != "none":
        why = "keeps inputs of layers outside of what model.compile compiles, with the weights among them"
        yield ("model", "offload_activations"), f"{why}; set one of them to false"
    if model.attention == "varlen" and model.compile:
        yield ("model", "attention"), "varlen goes through the documents of a row, which model.compile cannot; use sdpa"
    if model.logits_chunk:
        yield from _logits_chunk(recipe)
    if model.mlp_chunk and (model.module is not None or model.compile):
        other = "model.module, whose blocks are not known" if model.module is not None else "model.compile"
        yield ("model", "mlp_chunk"), f"cannot be combined with {other}; set it to 0"
    if model.dropout is not None:
        for key, value in model.config.items():
            if ("dropout" in key or "pdrop" in key) and _is_number(value) and value != model.dropout:
                yield (
                    ("model", "config", key),
                    (f"is {value}, but model.dropout sets every dropout to {model.dropout}; keep one of them"),
                )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _exists(name: str) -> bool:
    try:
        return FilePath(name).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # invalid file names, unknown users
        return False


def _looks_local(text: str) -> bool:
    return text.startswith(("./", "../", "/", "~"))


def _pretrained(recipe: Recipe) -> Iterator[Finding]:
    name = recipe.model.pretrained
    if name is None or kind_of(name) != "other":
        return
    name, _, _ = name.partition("@") if not _exists(name) else (name, "", "")
    exists = _exists(name) and not is_file(FilePath(name).expanduser())
    if _looks_local(name) and not exists:
        yield ("model", "pretrained"), f"no folder {name!r}; relative paths start at the current folder"
    elif not exists and not (_HUB_ID.fullmatch(name) or _OLD_HUB_IDS.fullmatch(name)):
        yield ("model", "pretrained"), f"{name!r} is neither a folder here nor a hub id such as openai-community/gpt2"


def _tokenizer(recipe: Recipe) -> Iterator[Finding]:
    name = recipe.tokenizer
    if not objective_spec(recipe.objective).text:
        if recipe.added_tokens:
            yield ("added_tokens",), f"{recipe.objective} has no tokenizer that could get them; remove it"
        return
    if find_tokenizer_spec(name) is None and not _exists(name) and kind_of(name) == "other":
        if _looks_local(name) or name.endswith((".json", ".yaml")):
            yield ("tokenizer",), f"no file or folder {name!r}; relative paths start at the current folder"
        elif not (_HUB_ID.fullmatch(name) or _OLD_HUB_IDS.fullmatch(name)):
            yield (
                ("tokenizer",),
                (
                    f"{name!r} is neither a spec in tokenizers/, a path nor a hub id (org/name); "
                    f"{suggestion(name, tokenizer_specs())}"
                ),
            )
    added = recipe.added_tokens
    if not all(token.strip() for token in added) or len(set(added)) < len(added):
        yield ("added_tokens",), "has a token that is empty or there twice; leave it out"
    size, vocabulary = recipe.model.config.get("vocab_size"), shipped_vocabulary(name)
    if vocabulary is not None:
        vocabulary += len(set(added))
    if type(size) is int and vocabulary is not None and size < vocabulary:
        yield (
            ("model", "config", "vocab_size"),
            (
                f"{size} is less than the {vocabulary} entries of the tokenizer {name}; set at least {vocabulary}, or "
                "remove it"
            ),
        )


def shipped_vocabulary(name: str) -> int | None:
    """Vocabulary size of a shipped tokenizer: the 256 bytes and its special tokens, or the size in its training report.

    None if the tokenizer is not shipped or not trained yet.
    """
    spec = find_tokenizer_spec(name)
    if spec is None:
        return None
    try:
        data = YAML(typ="safe", pure=True).load(spec)
        if data["kind"] == "bytes":
            return 256 + len(set(data["special_tokens"].values()))
        report = json.loads((spec.with_suffix("") / "report.json").read_text(encoding="utf-8"))
        size = report["vocabulary"]["size"]
        return size if type(size) is int else None
    except (OSError, ValueError, YAMLError, KeyError, TypeError, AttributeError):
        return None  # opening the tokenizer reports the problem of its spec
