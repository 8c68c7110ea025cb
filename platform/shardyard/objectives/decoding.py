"""Decoding of texts with an encoder–decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin

from shardyard.models.generation import one_text
from shardyard.objectives.base import Tensors


def decode(
    model: Any,
    tokenizer: Any,
    inputs: Tensors,
    *,
    max_tokens: int,
    prompt: Sequence[int] = (),
    beams: int = 1,
    synchronised: bool = False,
) -> list[str]:
    """The likeliest text for each row, greedily or by beam search; special tokens are left out.

    Whisper's own `generate` expects tokens for languages and time stamps, which the tokenizer may not have; this uses
    the search that all families share.

    Args:
        model: a transformers model in evaluation mode.
        inputs: of the encoder, [B, …] each.
        max_tokens: the maximum length of a text; longer ones are cut.
        prompt: the tokens with which every text of the decoder begins, such as a language; none for the start token of
            the model.
        synchronised: continue until all ranks are done, because each forward pass is a collective (ZeRO-3).
    """
    eos = tokenizer.eos_token_id
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos
    # Nothing in a recording is masked, but the search warns if there is no mask.
    first = next(iter(inputs.values()))
    given = {"decoder_input_ids": torch.tensor([list(prompt)] * len(first), device=first.device)} if prompt else {}
    masks = {"attention_mask": torch.ones((len(first), first.shape[-1]), dtype=torch.long, device=first.device)}
    with torch.no_grad(), one_text(model):
        ids: Tensor = GenerationMixin.generate(
            model,
            **(masks | inputs | given),
            max_new_tokens=max_tokens,
            num_beams=beams,
            do_sample=False,
            use_cache=True,
            eos_token_id=eos,
            pad_token_id=padding,
            synced_gpus=synchronised,
        )
    return list(tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def kept_texts(batch: Tensors, name: str) -> list[str]:
    """Texts that rows hold as UTF-8 bytes, uint8 [B, bytes] padded with zeros."""
    return [bytes(row.tolist()).rstrip(b"\0").decode() for row in batch[name].cpu()]
