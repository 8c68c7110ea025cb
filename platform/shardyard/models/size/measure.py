"""Sizes of a model, counted on the meta device: exact for every family, without allocating any weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig

from shardyard.errors import ModelError
from shardyard.models.adapters.adapters import num_quantized, num_trainable
from shardyard.models.adapters.targets import described
from shardyard.models.build import architecture_config, own_rows, skeleton
from shardyard.models.outside import ModuleConfig, OutsideModel, check_rows
from shardyard.models.pretrained import freeze
from shardyard.models.size.kept import kept_of
from shardyard.models.size.pictures import picture_row_cost
from shardyard.models.size.row_cost import RowCost, row_cost
from shardyard.models.size.row_shapes import row_shape
from shardyard.models.size.valued_row import check_narrow
from shardyard.objectives.registry import objective_spec
from shardyard.planning.architecture import Architecture, LayerShape
from shardyard.recipe.image_tokens import uses_own_processor
from shardyard.recipe.schema import Model, Recipe

# The inner width of an MLP, as configurations of transformers name it; and the matrices that make an MLP a gated one.
_INNER_WIDTHS = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "d_ff")
_GATES = ("gate_proj", "gate_up_proj", "mlp.w1", "experts.0.w1", "wi_1")
# Keys that have a matrix of their own, and gates.
_SEPARATE_KEYS = ("k_proj.", ".key.", "k_lin.", ".k.weight")
_SEPARATE_GATES = ("gate_proj.", "mlp.w1.", "wi_1.")


def measure(model: Model, *, vocabulary: int) -> Architecture:
    """Count the weights of the causal language model that a `model` section describes.

    Raises:
        ModelError: `transformers` does not know the family or rejects the configuration.
    """
    no_ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    config = architecture_config(model, vocabulary=vocabulary, special_tokens=no_ids)
    return sizes(skeleton(model, config), config, model.label)


def measure_recipe(recipe: Recipe, config: PreTrainedConfig) -> Architecture:
    """Count the weights of a recipe's model and, unless it is a decoder, the cost of a row.

    Some models read values, which the meta device does not have (where the end token is, which experts are chosen).
    Their cost follows from the weights by the formula for decoders, once a narrow copy has taken a row.

    Raises:
        ModelError: the configuration describes no model.
    """
    module = skeleton(recipe.model, config, recipe.objective)
    found = _trained_part(sizes(module, config, recipe.model.label), module, recipe)
    before = own_rows(recipe.model)
    if before is not None and before != found.vocabulary:
        found = replace(found, pretrained_vocabulary=before)
    spec = objective_spec(recipe.objective)
    packed = spec.rows == "packed" or bool(recipe.data.packing)
    check_rows(module, isolate_documents=recipe.data.isolate_documents, packed=packed)
    if spec.row_shape is None and not isinstance(config, ModuleConfig):
        pair = kept_of(module)
        return found if pair is None else replace(found, kept_16=pair[0], kept_32=pair[1])
    try:
        cost = _cost(module, config, recipe, found)
    except ModelError as error:
        # A custom operation without shape inference: only the weights are counted.
        if isinstance(config, ModuleConfig):
            if isinstance(error.__cause__, NotImplementedError):
                return found
            raise
        if spec.row_shape == "image_within_text":
            raise
        check_narrow(config, recipe, error)
        return replace(found, tokens_per_row=row_shape(recipe.objective)(config, recipe.data, recipe.image)[1])
    texts = spec.sequences * spec.texts
    return replace(
        found,
        tokens_per_row=cost.tokens * texts,
        flops_per_row=cost.flops * texts,
        kept_32=cost.kept,
        logits_per_row=cost.logits * texts,
    )


def _cost(module: Any, config: PreTrainedConfig, recipe: Recipe, found: Architecture) -> RowCost:
    own = objective_spec(recipe.objective).row_shape == "image_within_text" and not isinstance(config, ModuleConfig)
    if own and uses_own_processor(recipe.model, recipe.image):
        return picture_row_cost(module, config, recipe, found)
    return row_cost(module, config, recipe.objective, recipe.data, recipe.image)


def _trained_part(found: Architecture, module: Any, recipe: Recipe) -> Architecture:
    adapter = recipe.model.adapter
    if adapter is not None:
        adapted, left_out = described(module, adapter)
        return replace(
            found,
            adapted=adapted,
            left_out=left_out,
            trainable_parameters=num_trainable(module, adapter, recipe.objective),
            quantized_parameters=num_quantized(module, adapter),
        )
    if not recipe.model.freeze:
        return found
    freeze(module.module if isinstance(module, OutsideModel) else module, recipe.model.freeze)
    trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    module.requires_grad_(True)  # the cost of a row is counted on this module next
    return replace(found, trainable_parameters=trained)


def sizes(module: nn.Module, config: PreTrainedConfig, family: str) -> Architecture:
    """The weights of a module on the meta device. With several stacks (encoder and decoder), all blocks are counted."""
    text = config.get_text_config()
    parameters = _count(module)
    hidden = _hidden_size(text)
    vocabulary = int(getattr(text, "vocab_size", 0) or 0)
    looked_up = sum(p.numel() for p in {id(p): p for p in _embedding_tables(module)}.values())
    matmul = parameters - looked_up + (vocabulary * hidden if _has_tied_head(module) else 0)
    idle = _idle_expert_parameters(module, text)
    block = max(_blocks(module), key=_count, default=None)
    return Architecture(
        family=family,
        parameters=parameters,
        matmul_parameters=matmul - idle,
        largest_block_parameters=0 if block is None else _count(block),
        block_experts=0 if block is None else _expert_parameters(block),
        largest_tensor_parameters=max((p.numel() for p in module.parameters()), default=0),
        # Swin calls its stages layers; its blocks correspond to the layers of other families.
        layers=int(sum(getattr(text, "depths", None) or []) or getattr(text, "num_hidden_layers", None) or 0),
        hidden_size=hidden,
        heads=_heads(text),
        attention_width=_attention_width(text),
        vocabulary=vocabulary,
        positions=getattr(text, "max_position_embeddings", None),
        active_parameters=parameters - idle,
        expert_parameters=_expert_parameters(module),
        layer=_layer(module, text),
    )


def _layer(module: nn.Module, config: PreTrainedConfig) -> LayerShape | None:
    """The parts of a decoder's layer, as its configuration and the names of its modules tell."""
    heads = _heads(config)
    width = _attention_width(config) or _hidden_size(config)
    inner: Any = next((found for name in _INNER_WIDTHS if (found := getattr(config, name, None))), None)
    shared: Any = getattr(config, "num_key_value_heads", None) or getattr(config, "multi_query", None)
    ratio = getattr(config, "expansion_ratio", None) or getattr(config, "mlp_ratio", None)
    if not heads or not width:
        return None
    experts = _num_experts(config)
    inner = (getattr(config, "moe_intermediate_size", None) or inner) if experts else inner
    inner = inner or (ratio or 4) * _hidden_size(config)
    key_values = 1 if shared is True else shared or heads
    parts = {type(part).__name__ for part in module.modules()}
    weights = [name for name, _ in module.named_parameters()]
    return LayerShape(
        key_value_width=int(width * min(heads, key_values) // heads) if isinstance(key_values, int) else width,
        mlp_width=int(inner if not isinstance(inner, (list, tuple)) else max(inner)),
        gated=any(any(word in name for word in _GATES) for name in weights),
        rms_norm=any("RMSNorm" in name or name == "T5LayerNorm" for name in parts),
        rotary=any("Rotary" in name for name in parts),
        experts=experts or 0,
        experts_per_token=(getattr(config, "num_experts_per_tok", None) or 1) if experts else 0,
        inputs=(
            3 if any(word in name for name in weights for word in _SEPARATE_KEYS) else 1,
            2 if any(word in name for name in weights for word in _SEPARATE_GATES) else 1,
        ),
    )


def _hidden_size(config: PreTrainedConfig) -> int:
    """The hidden size; the largest one if stages differ."""
    widths = [getattr(config, name, None) for name in ("hidden_size", "hidden_sizes", "hidden_dim")]
    width: Any = next((width for width in widths if width), 0)
    return width if isinstance(width, int) else int(max(width))


def _heads(config: PreTrainedConfig) -> int:
    heads: Any = getattr(config, "num_attention_heads", None) or getattr(config, "num_heads", 0)
    return heads if isinstance(heads, int) else int(max(heads))


def _attention_width(config: PreTrainedConfig) -> int | None:
    """The width of all heads, for families that set the width of a head, or separate ones for keys and values (MLA)."""
    keys, values = getattr(config, "qk_head_dim", None), getattr(config, "v_head_dim", None)
    if keys and values:
        return int(_heads(config) * (keys + values) // 2)
    width = _widest_head(config)
    return int(_heads(config) * width) if isinstance(width, int) else None


def _widest_head(config: PreTrainedConfig) -> int | None:
    """The width of a head; the largest one if layers differ (Gemma 4): transformers then refuses to name one."""
    if not getattr(config, "is_heterogeneous", False):
        return getattr(config, "head_dim", None)
    layers = config.per_layer_config
    widths = [
        getattr(layer, "head_dim", None) for layer in (layers[index] for index in range(config.num_hidden_layers))
    ]
    return max((width for width in widths if isinstance(width, int)), default=None)


def _has_tied_head(module: Any) -> bool:
    """Whether the output head shares the embedding table, which is then also used in a matrix product."""
    try:
        head, table = module.get_output_embeddings(), module.get_input_embeddings()
    except (NotImplementedError, AttributeError):  # an image model has neither
        return False
    return head is not None and getattr(head, "weight", None) is getattr(table, "weight", 0)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _embedding_tables(module: nn.Module) -> Iterator[Tensor]:
    for part in module.modules():
        if isinstance(part, nn.Embedding):
            yield part.weight


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for part in module.modules():
        if isinstance(part, nn.ModuleList):
            yield from part


def _idle_expert_parameters(module: nn.Module, config: PreTrainedConfig) -> int:
    """Weights of the experts that a token is not routed to (0 for dense models)."""
    experts = _num_experts(config)
    chosen: int | None = getattr(config, "num_experts_per_tok", None)
    if not experts or not chosen:
        return 0
    return int(_expert_parameters(module) * (1 - chosen / experts))


def _num_experts(config: PreTrainedConfig) -> int | None:
    """Number of routed experts of a layer; None in dense models."""
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    return next((count for name in names if isinstance(count := getattr(config, name, None), int) and count), None)


def _expert_parameters(module: nn.Module) -> int:
    return sum(
        p.numel() for name, p in module.named_parameters() if ".experts." in name and p.shape and "shared" not in name
    )
