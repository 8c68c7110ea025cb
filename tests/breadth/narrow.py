"""Finds a small configuration of a model type with which plain transformers trains, without a list of families."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig

from shardyard.recipe.families import config_fields

VOCABULARY = 512
POSITIONS = 128
SECONDS_OF_SOUND = 3
END = 2
LABELS = 6
MOST_PARAMETERS = 60_000_000
MOST_LAYERS = 48
MOST_TRIES = 10
MOST_SECONDS = 60.0
IMAGE_SIZES = (32, 64, None)
WIDTH_DIVISORS = (64, 32, 16, 8, 4, 2, 1)

_LAYERS = re.compile(
    r"^(num_(hidden_|decoder_|encoder_|hidden)?layers|n_layers?|(en|de)coder_layers|num_blocks|num_layers_per_stack)$"
)
_HEADS = re.compile(r"(heads?|num_query_groups|n_groups|ngroups|o_groups|index_n_heads)$")
_EXPERTS = re.compile(r"^((num|n|moe_num)_(local_|routed_)?experts|zero_expert_num)$")
_CHOSEN = re.compile(r"^(num_experts_per_tok(en)?|moe_topk|moe_k|top_k_experts)$")
_GROUPS = re.compile(r"^(n_group|topk_group|num_expert_group)$")
_ONE = re.compile(r"^(n_group|topk_group|num_expert_group|n(um)?_shared_experts?)$")
_POSITIONS = re.compile(r"(max_position|n_positions|max_seq|n_ctx|max_.*positions|context_length|model_max_length)")
_WIDTH = re.compile(
    r"(hidden|inter|embd|embed|_size$|dim$|d_model|d_inner|d_kv|ffn|dff|d_ff|rank|width|headdim|d_head|d_state|d_ssm"
    r"|kv_channels|rotary|scalar|channels)"
)
_KEPT = re.compile(
    r"(token|kernel|patch|window|chunk|block|length|period|topk|codebook|conv_dim|d_conv|pad|mel|image_size|stride"
    r"|extent|ngram|type_vocab|fraction|multiple|num_channels|labels)"
)
_DENSE_FIRST = ("first_k_dense_replace", "num_dense_layers", "moe_layer_end_index", "max_window_layers")
_SKIPPED = ("rope_parameters", "rope_scaling", "quantization_config", "id2label", "label2id")
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
_WIDTHS = ("hidden_size", "n_embd", "d_model", "dim", "emb_dim", "embedding_dim", "n_embed", "dim_model", "hidden_dim")
_HEAD_COUNTS = (
    *("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"),
    *("decoder_attention_heads", "num_decoder_attention_heads", "encoder_attention_heads"),
)
_TOTALS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "num_blocks")


@dataclass(frozen=True)
class Narrow:
    """A small configuration: `config` are the fields that differ from the family's defaults, as a recipe takes them.

    image_size: height and width of its pictures; None for the default of the family.
    """

    config: dict[str, Any]
    image_size: int | None
    parameters: int


@dataclass(frozen=True)
class _Cut:
    """How far to narrow: layers to keep, divisors of widths and heads, whether lists of sizes and ranks shrink too."""

    layers: int
    width: int
    heads: int
    lists: bool
    ranks: bool


class InvalidInTransformersError(Exception):
    """Plain transformers trains with no configuration that was tried."""


def find(family: str, auto_class: str) -> Narrow:
    """The smallest configuration tried with which plain transformers does a forward and a backward pass.

    Raises:
        InvalidInTransformersError: there is none; the text has transformers' first and last message.
    """
    started, errors = time.monotonic(), []
    try:
        default = AutoConfig.for_model(family)
    except Exception as error:
        raise InvalidInTransformersError(f"default configuration: {_text(error)}") from error
    try:
        with torch.device("meta"):
            full = getattr(transformers, auto_class).from_config(default)
        layers = min(MOST_LAYERS, layers_needed(layer_kinds(full)))
        del full
    except Exception as error:  # noqa: BLE001  whatever transformers raises, it is its own default configuration
        errors.append(f"default configuration: {_text(error)}")
        layers = 2
    for size, cut in _cuts(default, auto_class, layers):
        config = narrowed(default.to_dict(), cut)
        if size is not None and isinstance(config.get("image_size"), int | list | tuple):
            config["image_size"] = size
        fields = config_fields(family)
        changed = {
            name: value
            for name, value in difference(default.to_dict(), config).items()
            if fields is None or name in fields.names
        }
        try:
            parameters = train_plainly(family, auto_class, changed, size)
        except Exception as error:  # noqa: BLE001  a refusal of transformers: try the next
            errors.append(_text(error))
        else:
            return Narrow(changed, size, parameters)
        if time.monotonic() - started > MOST_SECONDS:
            errors.append(f"stopped after {MOST_SECONDS:g} s")
            break
    raise InvalidInTransformersError(" … ".join(list(dict.fromkeys(errors))[:: max(1, len(set(errors)) - 1)]))


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def _cuts(default: PreTrainedConfig, auto_class: str, layers: int) -> Iterator[tuple[int | None, _Cut]]:
    text = default.get_text_config(decoder=True).to_dict()
    hidden = _number(text, _WIDTHS) or 1024
    heads = _number(text, _HEAD_COUNTS) or 8
    sizes = IMAGE_SIZES if auto_class == "AutoModelForImageClassification" else (None,)
    widths = [width for width in WIDTH_DIVISORS if hidden // width >= 32 or width == 1]
    shares = sorted({max(1, heads // 4), max(1, heads // 8), 2, 1}, reverse=True)
    for lists, size, ranks in itertools.product((True, False), sizes, (True, False)):
        cuts = (_Cut(layers, width, share, lists, ranks) for width, share in itertools.product(widths, shares))
        # The widest are tried last of all.
        yield from ((size, cut) for cut in itertools.islice(cuts, MOST_TRIES))
    for width, share in list(itertools.product(widths, shares))[MOST_TRIES:]:
        yield None, _Cut(layers, width, share, lists=False, ranks=False)


def _number(values: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    found = (values[name] for name in names if type(values.get(name)) is int)
    return next(found, None)


def narrowed(values: Mapping[str, Any], cut: _Cut, total: int | None = None) -> dict[str, Any]:
    """The fields of a configuration, made small."""
    own_total = _number(values, _TOTALS) or total
    made = {name: _narrow_field(name, value, cut, own_total) for name, value in values.items()}
    hidden, heads = _number(made, _WIDTHS), _number(made, _HEAD_COUNTS)
    if "head_dim" in made and made["head_dim"] is None and hidden and heads:
        made["head_dim"] = hidden // heads
    return made


def _narrow_field(name: str, value: Any, cut: _Cut, total: int | None) -> Any:
    if name == "per_layer_config" and isinstance(value, dict):
        return {key: one for key, one in value.items() if int(key) < cut.layers}
    if isinstance(value, dict) and name not in _SKIPPED:
        return narrowed(value, cut, total)
    if value is None:
        # Families whose configuration has no default for its experts.
        return 4 if _EXPERTS.match(name) else 2 if _CHOSEN.match(name) else 1 if _ONE.match(name) else None
    if isinstance(value, list | tuple) and value:
        return _narrow_list(name, list(value), cut, total)
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    if name.endswith("token_id"):
        return value if value < VOCABULARY else 3
    if "vocab" in name and not name.startswith("type"):
        return min(value, VOCABULARY)
    if name == "max_source_positions":
        return min(value, SECONDS_OF_SOUND * 50)
    if _POSITIONS.search(name):
        return min(value, POSITIONS)
    if _LAYERS.match(name):
        return min(value, cut.layers)
    if name in _DENSE_FIRST:
        return min(value, cut.layers - 1)
    return _narrow_size(name, value, cut)


def _narrow_size(name: str, value: int, cut: _Cut) -> int:
    if _GROUPS.match(name):
        return 1 if name == "topk_group" else min(value, 2)
    if _EXPERTS.match(name):
        return min(value, 8)
    if _CHOSEN.match(name):
        return min(value, 2)
    if _HEADS.search(name):
        return value // cut.heads if value % cut.heads == 0 else value
    kept = _KEPT.search(name) or (not cut.ranks and re.search(r"rank|state|scalar|channels", name))
    if not kept and _WIDTH.search(name) and value >= 16:
        # Experts are multiplied by kernels that need rows of a multiple of 16 bytes.
        whole = value % cut.width == 0 and value // cut.width >= 4
        return value // cut.width if whole else max(8, value // cut.width // 8 * 8)
    return value


def _narrow_list(name: str, value: list[Any], cut: _Cut, total: int | None) -> list[Any]:
    if total and len(value) == total and total > cut.layers and not isinstance(value[0], int):
        return value[: cut.layers]
    if not cut.lists or not all(type(one) is int for one in value):
        return value
    if name in ("depths", "layers_per_stage", "num_blocks"):
        return [min(one, 2) for one in value]
    if re.search(r"hidden_sizes|embed_dims?|channels|dims|widths", name):
        smallest = max(1, min(cut.width, 8))
        return [one // smallest if one % smallest == 0 and one // smallest >= 4 else one for one in value]
    return value


def difference(default: Mapping[str, Any], narrow: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that differ. The vocabulary and special tokens are those of a recipe's tokenizer, not of its model."""
    changed: dict[str, Any] = {}
    for name, value in narrow.items():
        before = default.get(name)
        if name == "vocab_size" or name in _SPECIAL or value == before:
            continue
        if name != "per_layer_config" and isinstance(value, dict) and isinstance(before, dict):
            inner = difference(before, value)
            if inner:
                kind = {"model_type": value["model_type"]} if value.get("model_type") else {}
                changed[name] = {**kind, **inner}
        else:
            changed[name] = list(value) if isinstance(value, tuple) else value
    return changed


def layer_kinds(model: nn.Module) -> list[str]:
    """A description of each layer of the longest list of blocks: classes, shapes and switches."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) > 1]
    return [_kind(layer) for layer in max(lists, key=len)] if lists else []


def _kind(layer: nn.Module) -> str:
    parts = []
    for name, inner in layer.named_modules():
        switches = {
            key: value
            for key, value in vars(inner).items()
            if isinstance(value, bool | str) or value is None or "window" in key
        }
        for key in ("training", "_is_hf_initialized"):
            switches.pop(key, None)
        shapes = [(key, tuple(parameter.shape)) for key, parameter in inner.named_parameters(recurse=False)]
        parts.append((name, type(inner).__name__, sorted(switches.items(), key=str), shapes))
    return re.sub(r"layers?\.\d+", "", repr(parts))


def layers_needed(kinds: list[str]) -> int:
    """Length of the shortest beginning that has every kind of layer; at least two."""
    first: dict[str, int] = {}
    for index, kind in enumerate(kinds):
        first.setdefault(kind, index)
    return max(2, max(first.values(), default=0) + 1)


def train_plainly(family: str, auto_class: str, config: dict[str, Any], image_size: int | None) -> int:
    """A forward and a backward pass of plain transformers; returns the number of parameters.

    Raises:
        Exception: whatever transformers raises; RuntimeError for too many parameters or a value that is not finite.
    """
    made = plain_config(family, config)
    of = getattr(transformers, auto_class)
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in of.from_config(made).parameters())
    if not 0 < parameters < MOST_PARAMETERS:
        raise RuntimeError(f"{parameters} parameters")
    torch.manual_seed(0)
    model = of.from_config(made, dtype=torch.float32).train()
    batch = _BATCHES.get(auto_class)
    if batch is None:
        return parameters
    inputs = batch(made, image_size)
    try:
        loss = model(**inputs).get("loss")
    except (ValueError, TypeError):  # some heads compute no loss for such rows, or none at all
        loss = None
    if loss is None:
        output = model(**{name: value for name, value in inputs.items() if name != "labels"})
        loss = next(value for value in (output.get("logits"), output[0]) if value is not None).float().sum()
    loss.backward()
    if not torch.isfinite(loss):
        raise RuntimeError(f"the loss is {float(loss)}")
    return parameters


def plain_config(family: str, config: dict[str, Any]) -> PreTrainedConfig:
    """The configuration with a vocabulary and special tokens, as a user of transformers sets them."""
    text = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": END, "pad_token_id": 0}
    default = AutoConfig.for_model(family)
    if "text_config" in default.sub_configs:
        config = {**config, "text_config": {**config.get("text_config", {}), **text}}
    elif hasattr(default, "vocab_size"):
        start = {"decoder_start_token_id": 0} if default.is_encoder_decoder else {}
        config = {**text, **start, **config}
    made = AutoConfig.for_model(family, **config, num_labels=LABELS)
    made.architectures, made.use_cache = [], False
    return made


Batch = Callable[[PreTrainedConfig, int | None], dict[str, Tensor]]


def _ids(rows: int = 2, length: int = 16) -> Tensor:
    ids = torch.arange(rows * length).view(rows, length) + 5
    ids[:, -1] = END  # the classifiers of BART and others read the last end token
    return ids


def _text_batch(**labels: Tensor) -> Batch:
    return lambda config, size: {"input_ids": _ids(), "attention_mask": torch.ones_like(_ids()), **labels}


def _image_batch(config: PreTrainedConfig, size: int | None) -> dict[str, Tensor]:
    side = size or getattr(config, "image_size", None) or 224
    height, width = (side, side) if isinstance(side, int) else side
    pixels = torch.randn(2, getattr(config, "num_channels", 3), height, width)
    return {"pixel_values": pixels, "labels": torch.tensor([0, 1])}


_BATCHES: dict[str, Batch] = {
    "AutoModelForCausalLM": _text_batch(labels=_ids()),
    "AutoModelForMaskedLM": _text_batch(labels=_ids()),
    "AutoModelForSeq2SeqLM": _text_batch(labels=_ids()),
    "AutoModelForSequenceClassification": _text_batch(labels=torch.tensor([0, 1])),
    "AutoModelForTokenClassification": _text_batch(labels=_ids() % LABELS),
    "AutoModelForQuestionAnswering": _text_batch(
        start_positions=torch.tensor([1, 2]), end_positions=torch.tensor([2, 3])
    ),
    "AutoModelForMultipleChoice": lambda config, size: {
        "input_ids": _ids(4).view(2, 2, 16),
        "attention_mask": torch.ones(2, 2, 16, dtype=torch.long),
        "labels": torch.tensor([0, 1]),
    },
    "AutoModel": _text_batch(),
    "AutoModelForImageClassification": _image_batch,
}
