"""Sizes of a model, counted on the meta device: exact for every family, and no weight is ever allocated."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from transformers import PreTrainedConfig

from shardyard.models.build import architecture_config, skeleton
from shardyard.recipe.architecture import Architecture
from shardyard.recipe.schema import Model


def measure(model: Model, *, vocabulary: int) -> Architecture:
    """Count the weights of the model that a recipe describes.

    Raises:
        ModelError: `transformers` does not know the family or refuses the configuration.
    """
    no_ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    config = architecture_config(model, vocabulary=vocabulary, special_tokens=no_ids)
    return _sizes(skeleton(model, config), config.get_text_config(), model.family)


def _sizes(module: nn.Module, config: PreTrainedConfig, family: str) -> Architecture:
    parameters = _count(module)
    head = config.vocab_size * config.hidden_size
    looked_up = sum(p.numel() for p in {id(p): p for p in _embedding_tables(module)}.values())
    untied_head = module.get_output_embeddings().weight is not module.get_input_embeddings().weight  # type: ignore[operator]
    matmul = parameters - looked_up + (0 if untied_head else head)
    return Architecture(
        family=family,
        parameters=parameters,
        matmul_parameters=matmul - _idle_expert_parameters(module, config),
        largest_block_parameters=max(
            (sum(p.numel() for p in block.parameters()) for block in _blocks(module)), default=0
        ),
        layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        heads=config.num_attention_heads,
        vocabulary=config.vocab_size,
        positions=getattr(config, "max_position_embeddings", None),
    )


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
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    experts = next((count for name in names if (count := getattr(config, name, None))), None)
    chosen: int | None = getattr(config, "num_experts_per_tok", None)
    if not experts or not chosen:
        return 0
    routed = sum(
        p.numel() for name, p in module.named_parameters() if ".experts." in name and p.shape and "shared" not in name
    )
    return int(routed * (1 - chosen / experts))
