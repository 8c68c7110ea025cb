"""Probes of what training changes: dropout, tied weights, and the weights that a gradient reaches."""

from __future__ import annotations

from typing import Any

import torch

from shardyard.models.probes.padding import text_logits
from shardyard.models.probes.tokens import DOCUMENT, moved, random_tokens


@torch.no_grad()
def randomness(model: Any) -> float:
    """How far two passes in training mode differ, as a fraction of the logits' spread; 0 without dropout."""
    ids = random_tokens(2, DOCUMENT, seed=3)
    model.train()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            first, second = text_logits(model, ids), text_logits(model, ids)
    finally:
        model.eval()
    return moved(second, first)


def is_untied(model: Any) -> bool:
    """Whether the configuration ties the embedding and the head, and the model has different weights for them."""
    config = model.config.get_text_config()
    try:
        table, head = model.get_input_embeddings(), model.get_output_embeddings()
    except (NotImplementedError, AttributeError):
        return False
    if not getattr(config, "tie_word_embeddings", False) or table is None or head is None:
        return False
    return head.weight is not table.weight


def without_gradient(model: Any) -> list[str]:
    """Names of trainable weights that no gradient reaches; experts may be missing from a few tokens' routes."""
    logits = text_logits(model, random_tokens(8, DOCUMENT, seed=4))
    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    torch.autograd.backward((logits * direction).sum())
    found = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and "expert" not in name and (parameter.grad is None or not parameter.grad.any())
    ]
    model.zero_grad(set_to_none=True)
    return found
