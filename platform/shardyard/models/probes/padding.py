"""The probe of padding: the logits of a text must not depend on the padding behind it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from shardyard.models.probes.tokens import DOCUMENT, moved, random_tokens

# Tokens of padding.
PADDING = 5


@torch.no_grad()
def padding_leak(model: Any) -> float:
    """How far the logits of a text move when it is padded on the right, as a fraction of their spread.

    Args:
        model: with logits for each token or for the text, in evaluation mode.
    """
    ids = random_tokens(2, DOCUMENT, seed=2)
    padding = getattr(model.config.get_text_config(), "pad_token_id", None) or 0
    padded = functional.pad(ids, (0, PADDING), value=padding)
    alone, found = text_logits(model, ids), text_logits(model, padded, DOCUMENT)
    if found.shape != alone.shape:
        found = found[:, :DOCUMENT]
    return moved(found, alone)


def text_logits(model: Any, ids: Tensor, length: int | None = None) -> Tensor:
    """Logits for texts [B, T], of which the first `length` tokens are no padding; of several outputs, the first.

    An encoder–decoder gets the same decoder inputs for all lengths.
    """
    mask = torch.ones_like(ids)
    if length is not None:
        mask[:, length:] = 0
    decoder = {"decoder_input_ids": ids[:, :DOCUMENT]} if model.config.is_encoder_decoder else {}
    logits: Tensor = model(input_ids=ids, attention_mask=mask, return_dict=True, **decoder)[0]
    return logits
