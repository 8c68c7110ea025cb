"""A pretrained model for more tokens: new rows of its embeddings, the same on every rank and at every ZeRO stage."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from shardyard.errors import ModelError

# New rows spread around the mean by this share of the standard deviation, about as in transformers, so that no two are
# the same.
_SPREAD = 1e-9**0.5


@dataclass(frozen=True)
class Resized:
    """Rows of the embeddings before and after."""

    before: int
    after: int


def rows_of(config: PreTrainedConfig) -> int | None:
    """Rows of the embeddings of the part that reads text; None for a model without text."""
    found = getattr(config.get_text_config(), "vocab_size", None)
    return found if isinstance(found, int) else None


def set_rows(config: PreTrainedConfig, rows: int) -> None:
    """Set the vocabulary of the part that reads text, and the whole model's where it is stated twice (Canary)."""
    before = rows_of(config)
    config.get_text_config().vocab_size = rows
    if getattr(config, "vocab_size", None) == before:
        config.vocab_size = rows


def padded(rows: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that holds `rows`."""
    return -(-rows // multiple) * multiple


def resize(model: Any, rows: int, *, seed: int) -> Resized:
    """Give a model embeddings and an output head of `rows` rows, in place.

    Each new row is the mean of the others and a little noise, as in `resize_token_embeddings(mean_resizing=True)`
    (Hewitt 2021, Initializing New Word Embeddings for Pretrained Language Models), from a generator keyed by seed and
    parameter: ranks that load the same weights hold the same rows. Fewer rows leave out the last ones.

    Raises:
        ModelError: the family cannot change its vocabulary.
    """
    before = int(model.get_input_embeddings().weight.shape[0])
    shapes = {name: tensor.shape for name, tensor in _tensors(model)}
    state = torch.get_rng_state()
    try:
        model.resize_token_embeddings(rows, mean_resizing=False)
    except (NotImplementedError, AttributeError, ValueError, TypeError) as error:
        family = model.config.model_type
        raise ModelError(
            f"the embeddings of this {family} have {before} rows and {rows} are needed, but transformers cannot resize "
            f"them: {error}. Use a tokenizer of at most {before} entries."
        ) from error
    finally:
        torch.set_rng_state(state)
    with torch.no_grad():
        for name, tensor in _tensors(model):
            old = shapes.get(name)
            # What has no values yet is filled by whoever reads them.
            if old is None or old == tensor.shape or tensor.is_meta:
                continue
            fill_rows(tensor if old[0] != tensor.shape[0] else tensor.T, min(before, rows), f"{seed}/{name}")
    return Resized(before, rows)


def _tensors(model: Any) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def fill_rows(tensor: Tensor, kept: int, key: str) -> None:
    """Fill the rows from `kept` on, in place; [rows, …]."""
    old, new = tensor[:kept].float(), tensor[kept:]
    if not len(new):
        return
    digest = hashlib.sha256(key.encode()).digest()
    random = torch.Generator(device=tensor.device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    noise = torch.randn(new.shape, generator=random, device=tensor.device)
    new.copy_(old.mean(0) + _SPREAD * old.std(0) * noise)
