"""How much of a batch is text, and how much padding."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from shardyard.data.stream.rows import Tensors

IGNORED = -100


def text_positions(micro_batches: Sequence[Tensors], unmasked: int) -> tuple[int, int]:
    """Tokens of the texts of a batch, of sources and targets, and the positions that they take with their padding.

    Args:
        unmasked: tokens of rows that have no attention mask: packed ones.
    """
    tokens = positions = 0
    has_unmasked = False
    for tensors in micro_batches:
        for name, ids in tensors.items():
            if not name.endswith("input_ids"):
                continue
            positions += ids.numel()
            known = _tokens(name, ids, tensors)
            tokens += known or 0
            has_unmasked = has_unmasked or known is None
    return tokens + (unmasked if has_unmasked else 0), positions


def _tokens(name: str, ids: Tensor, tensors: Tensors) -> int | None:
    """The tokens of one text; None if only the loader knows them."""
    mask = tensors.get(f"{name.removesuffix('input_ids')}attention_mask")
    if mask is not None and mask.shape == ids.shape:
        return int(mask.sum())
    labels = tensors.get("labels")
    if name == "decoder_input_ids" and labels is not None and labels.shape == ids.shape:
        return int((labels != IGNORED).sum())
    return None
