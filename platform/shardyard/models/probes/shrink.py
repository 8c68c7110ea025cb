"""Smaller numbers for the fields of a transformers configuration, which are known by their names."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

VOCABULARY = 128
POSITIONS = 128
# Tables of fewer positions grow to this, so that the documents of a probe fit.
LEAST_POSITIONS = 64
# Sliding windows and chunks become shorter than a document of a probe, so that their edges are part of it.
WINDOW = 8

_LAYERS = re.compile(
    r"^(num_(hidden_|decoder_|encoder_)?layers|n_layers?|(en|de)coder_layers|num_blocks|num_layers_per_stack|depths?)$"
)
_HEADS = re.compile(r"(heads?|num_query_groups|n_groups|ngroups|o_groups|index_n_heads)$")
_EXPERTS = re.compile(r"^((num|n|moe_num)_(local_|routed_)?experts|zero_expert_num)$")
_CHOSEN = re.compile(r"^(num_experts_per_tok(en)?|moe_topk|moe_k|top_k_experts)$")
_GROUPS = re.compile(r"^(n_group|topk_group|num_expert_group)$")
_POSITIONS = re.compile(
    r"(max_position|n_positions|max_seq|n_ctx|max_.*positions|context_length|model_max_length|max_len)"
)
_WINDOWS = re.compile(r"^(sliding_window|attention_chunk_size)$")
# Chunks in which state-space models compute; the result does not depend on their size, and the time does.
_CHUNKS = re.compile(r"^(mamba_)?chunk_size$")
_WIDTH = re.compile(
    r"(hidden|inter|embd|embed|_size$|dim$|d_model|d_inner|d_kv|ffn|dff|d_ff|rank|width|headdim|d_head|d_state|d_ssm|"
    r"channels|rotary|scalar)"
)
_KEPT = re.compile(
    r"(token|kernel|patch|window|chunk|block|length|period|topk|codebook|conv_dim|d_conv|pad|mel|image_size|stride|"
    r"extent|ngram|type_vocab|fraction|multiple|num_channels|labels)"
)
# Lists with a number for each stage of an encoder of pictures: blocks, and widths.
_DEPTHS = re.compile(r"^(depths|layers_per_stage|num_blocks)$")
_STAGES = re.compile(r"hidden_sizes|embed_dims?|channels|dims|widths")
_MOST_DIVIDED = 8
# Numbers in 16 bytes in bf16.
_ALIGNED = 8
# Widths that often stand in a fixed relation to each other.
_STATES = re.compile(r"rank|state|scalar|channels")
# Fields that are less than the number of layers.
_BELOW_LAYERS = frozenset({"first_k_dense_replace", "num_dense_layers", "moe_layer_end_index", "max_window_layers"})
_UNCHANGED = frozenset({"rope_parameters", "rope_scaling", "id2label", "label2id"})
_NUMBER_OF_LAYERS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "decoder_layers",
    "num_blocks",
    "num_decoder_layers",
)
_WIDTHS = (
    "hidden_size",
    "n_embd",
    "d_model",
    "dim",
    "emb_dim",
    "embedding_dim",
    "n_embed",
    "dim_model",
    "embedding_size",
)
_NUMBER_OF_HEADS = (
    "num_attention_heads",
    "n_head",
    "n_heads",
    "num_heads",
    "decoder_attention_heads",
    "attention_heads",
    "num_decoder_attention_heads",
    "encoder_attention_heads",
)


@dataclass(frozen=True)
class Shrink:
    """How far to shrink.

    layers: blocks that remain. widths, heads: divisors. image: height and width of pictures in pixels; None leaves them
    alone. caution: 0 shrinks most; 1 leaves ranks and states alone, 2 the heads, 3 the experts. stages: whether lists
    of blocks and widths shrink. experts: whether experts become fewer, and those that a token is routed to; if
    not, heads keep filling the width where they do, and inner widths are multiples of 8.
    """

    layers: int | None
    widths: int = 1
    heads: int = 1
    caution: int = 0
    vocabulary: int = VOCABULARY
    positions: int = POSITIONS
    row: int | None = None
    image: int | None = None
    stages: bool = True
    experts: bool = True
    ids: dict[int, int] = field(default_factory=dict)

    def values(self, config: Mapping[str, object], total: int | None = None) -> dict[str, object]:
        """The fields of a configuration (`to_dict`), shrunk.

        Args:
            total: layers of the configuration around this one.
        """
        own = number(config, _NUMBER_OF_LAYERS) or total
        found = {name: self._value(name, value, own) for name, value in config.items() if name != "quantization_config"}
        if not self.experts and _heads_fill_the_width(config):
            found["head_dim"] = (number(found, _WIDTHS) or 1) // (number(found, _NUMBER_OF_HEADS) or 1)
        return found

    def _value(self, name: str, value: object, total: int | None) -> object:
        if name in _UNCHANGED or value is None or isinstance(value, bool | str | float):
            return value
        if name.endswith(("token_id", "token_index", "token_ids")):
            return self._token(value)
        if name == "image_size" and self.image is not None and isinstance(value, int | list | tuple):
            return self.image
        if isinstance(value, dict):
            return self._below(value, total)
        if isinstance(value, list | tuple):
            return self._list(name, list(value), total)
        return self._number(name, value) if isinstance(value, int) else value

    def _below(self, values: dict[object, object], total: int | None) -> object:
        """A part of the configuration; or settings by the index of a layer, of which those that remain are kept."""
        if values and all(isinstance(key, int) or str(key).isdigit() for key in values):
            left = total if self.layers is None else self.layers
            return {key: value for key, value in values.items() if left is None or int(str(key)) < left}
        return self.values({str(key): value for key, value in values.items()}, total)

    def _list(self, name: str, values: list[object], total: int | None) -> list[object]:
        if self.layers is not None and total is not None and len(values) == total > self.layers:
            values = values[: self.layers]
        if not self.stages or not all(type(value) is int for value in values):
            return values
        whole = [value for value in values if isinstance(value, int)]
        if _DEPTHS.match(name):
            return [min(value, 2) for value in whole]
        if _STAGES.search(name):
            return [_divided(value, min(self.widths, _MOST_DIVIDED)) for value in whole]
        return [self._number(name, value) for value in whole] if _WIDTH.search(name) else values

    def _token(self, value: object) -> object:
        """Token ids that the smaller vocabulary lacks become its last ones, different ones different."""
        if isinstance(value, list):
            return [self._token(one) for one in value]
        if not isinstance(value, int) or value < self.vocabulary:
            return value
        return self.ids.setdefault(value, self.vocabulary - 1 - len(self.ids))

    def _number(self, name: str, value: int) -> int:
        layers = value + 1 if self.layers is None else self.layers
        if "vocab" in name and not name.startswith("type"):
            return self.vocabulary
        if _POSITIONS.search(name):
            return min(max(value, LEAST_POSITIONS), self.positions)
        if _LAYERS.match(name):
            return min(value, layers)
        if name in _BELOW_LAYERS:
            return min(value, layers - 1)
        if _WINDOWS.match(name) and self.caution < 1:
            return WINDOW if self.row is not None and WINDOW < value < self.row else value
        if _CHUNKS.match(name) and self.caution < 1:
            return min(value, 16)
        if not self.experts and any(kind.match(name) for kind in (_GROUPS, _EXPERTS, _CHOSEN)):
            return value
        if _GROUPS.match(name):
            return 1 if name == "topk_group" else min(value, 2)
        if _EXPERTS.match(name):
            return min(value, 8) if self.caution < 3 else value
        if _CHOSEN.match(name):
            return min(value, 2)
        if _HEADS.search(name):
            return value // self.heads if self.caution < 2 and value % self.heads == 0 else value
        if _KEPT.search(name) or not _WIDTH.search(name) or value < 16:
            return value
        if self.caution >= 1 and _STATES.search(name):
            return value
        found = _divided(value, self.widths)
        # Grouped products of experts take rows of a multiple of 16 bytes.
        return found if self.experts or "intermediate" not in name else math.ceil(found / _ALIGNED) * _ALIGNED


def _heads_fill_the_width(config: Mapping[str, object]) -> bool:
    width, heads, head = (number(config, names) for names in (_WIDTHS, _NUMBER_OF_HEADS, ("head_dim",)))
    return None not in (width, heads, head) and (heads or 0) * (head or 0) == width


def _divided(value: int, divisor: int) -> int:
    return value // divisor if value % divisor == 0 and value // divisor >= 4 else value


def number(values: Mapping[str, object], names: tuple[str, ...]) -> int | None:
    """The first of some fields that is a number."""
    found = (values.get(name) for name in names)
    return next((value for value in found if isinstance(value, int) and not isinstance(value, bool)), None)


def shrinks(text: Mapping[str, object], start: Shrink) -> Iterator[Shrink]:
    """Ways to shrink a model, the smallest first.

    Args:
        text: the configuration of the part that reads text.
        start: sets everything but divisors and caution.
    """
    width = number(text, _WIDTHS) or 1024
    heads = number(text, _NUMBER_OF_HEADS) or 8
    groups = sorted({max(1, heads // 4), max(1, heads // 8), 2, 1}, reverse=True)
    widths = sorted({64, 32, 16, 8, 4, 2, 1, *groups}, reverse=True)
    for caution in range(4):
        for divisor in widths:
            if divisor > 1 and width // divisor < 32:
                continue
            for group in groups:
                yield replace(start, widths=divisor, heads=group, caution=caution, ids={})
