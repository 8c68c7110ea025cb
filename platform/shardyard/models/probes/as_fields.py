"""A configuration as a recipe takes it: the fields in which it differs from its family's defaults."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import AutoConfig, PreTrainedConfig

from shardyard.recipe.families import ConfigFields, config_fields

# What a recipe's tokenizer sets, and what transformers notes about how a model was built.
_OTHERS = frozenset(
    {"vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "dtype"}
    | {"transformers_version", "architectures", "use_cache", "id2label", "label2id"}
)


def as_fields(family: str, config: PreTrainedConfig) -> dict[str, object]:
    """`model.config` of a recipe for a configuration, without the vocabulary and the special tokens."""
    known, wanted = config_fields(family), config.to_dict()
    fields: dict[str, object] = {}
    # The second time finds what a configuration derives from other fields unless it is given.
    for _ in range(2):
        changed = difference(AutoConfig.for_model(family, **fields).to_dict(), wanted)
        fields |= {name: value for name, value in changed.items() if name not in fields and _is(known, name)}
    return fields


def _is(known: ConfigFields | None, name: str) -> bool:
    return known is None or name in known.names


def difference(default: Mapping[str, object], narrow: Mapping[str, object]) -> dict[str, object]:
    """The fields that differ. The vocabulary and special tokens are those of a recipe's tokenizer, not of its model."""
    changed: dict[str, object] = {}
    for name, value in narrow.items():
        before = default.get(name)
        if name in _OTHERS or str(name).startswith("_") or value == before:
            continue
        if name != "per_layer_config" and isinstance(value, dict) and isinstance(before, dict):
            inner = difference(before, value)
            if inner:
                kind = {"model_type": value["model_type"]} if value.get("model_type") else {}
                changed[name] = {**kind, **inner}
        else:
            changed[name] = list(value) if isinstance(value, tuple) else value
    return changed
