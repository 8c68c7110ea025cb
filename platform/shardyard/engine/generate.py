"""Continuing a prompt."""

from __future__ import annotations

from typing import Any

import torch


def generate(
    model: Any,
    tokenizer: Any,
    prompt: str,
    *,
    max_new_tokens: int,
    device: torch.device,
    temperature: float = 0.0,
    seed: int = 0,
) -> str:
    """The continuation of a prompt, without the prompt; greedy at temperature 0.

    The random choice depends on `seed` alone and leaves the generators of dropout as they were. A document begins with
    the tokenizer's first token, so a prompt does too; what would not fit the model's positions is cut from the front
    of the prompt.
    """
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    ids = ([start] if start is not None else []) + tokenizer(prompt, add_special_tokens=False)["input_ids"]
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None:
        max_new_tokens = min(max_new_tokens, positions - 1)
        ids = ids[-(positions - max_new_tokens) :]
    inputs = torch.tensor([ids], device=device)
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        output = model.generate(
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=max_new_tokens,
            use_cache=True,
            pad_token_id=tokenizer.eos_token_id,
            **sampling,
        )
    return str(tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True))
