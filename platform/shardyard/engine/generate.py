"""Continuing a prompt."""

from __future__ import annotations

from typing import Any

import torch

from shardyard.data.chat import chat_prompt


def generate(
    model: Any,
    tokenizer: Any,
    prompt: str,
    *,
    max_new_tokens: int,
    device: torch.device,
    temperature: float = 0.0,
    seed: int = 0,
    chat: bool = False,
) -> str:
    """The continuation of a prompt, without the prompt; of an encoder–decoder what it makes of the prompt.

    Greedy at temperature 0. With `chat` the prompt is a message, and the text the model's answer to it. The random
    choice depends on `seed` alone and leaves the generators of dropout as they were.
    """
    prepare = _source if model.config.is_encoder_decoder else _question if chat else _beginning
    ids, max_new_tokens = prepare(model, tokenizer, prompt, max_new_tokens)
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
    new = output[0] if model.config.is_encoder_decoder else output[0, len(ids) :]
    return str(tokenizer.decode(new, skip_special_tokens=True))


def _beginning(model: Any, tokenizer: Any, prompt: str, max_new_tokens: int) -> tuple[list[int], int]:
    """A document begins with the tokenizer's first token, so a prompt does too.

    What would not fit the model's positions is cut from the front of the prompt.
    """
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    ids = ([start] if start is not None else []) + tokenizer(prompt, add_special_tokens=False)["input_ids"]
    return _fitted(model, ids, max_new_tokens)


def _question(model: Any, tokenizer: Any, prompt: str, max_new_tokens: int) -> tuple[list[int], int]:
    """A message in the chat template, which writes the first token itself."""
    ids = tokenizer(chat_prompt(tokenizer, prompt), add_special_tokens=False)["input_ids"]
    return _fitted(model, ids, max_new_tokens)


def _fitted(model: Any, ids: list[int], max_new_tokens: int) -> tuple[list[int], int]:
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None:
        max_new_tokens = min(max_new_tokens, positions - 1)
        ids = ids[-(positions - max_new_tokens) :]
    return ids, max_new_tokens


def _source(model: Any, tokenizer: Any, prompt: str, max_new_tokens: int) -> tuple[list[int], int]:
    """What an encoder reads is cut at its end, which the last token marks."""
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    positions = getattr(model.config, "max_position_embeddings", None) or len(ids) + max_new_tokens + 1
    return [*ids[: positions - 1], tokenizer.eos_token_id], min(max_new_tokens, positions - 1)
