"""Generating the continuation of a prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from shardyard.data.chat import chat_prompt
from shardyard.engine.mesh import Axis
from shardyard.models.generation import one_text

# When the model's positions are used up, the newest tokens are kept up to this share of the positions: with a larger
# share, tokens would be read again more often; with a smaller one, they would be dropped earlier.
KEPT_SHARE = 0.75


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """A context without gradients whose random numbers depend on `seed` alone; the state before comes back after it."""
    with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


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
    report: Callable[[str], None] = lambda text: None,
    together: Axis | None = None,
) -> str:
    """The continuation of a prompt, without the prompt; for an encoder–decoder, its output for the prompt.

    Greedy at temperature 0. With `chat`, the prompt is a message, and the text is the model's answer to it. Sampling
    depends only on `seed` and does not affect the random state of dropout. If a text exceeds the model's context, it is
    continued from its newest part. `report` is called with a message if the prompt does not fit.

    Args:
        tokenizer: that of the exported model (`data/exported.py`), whose texts the model begins with the same tokens.
        together: ranks that take part in every forward pass (ZeRO-3): all of them call this, and none stops before the
            others, wherever its own text ends.
    """
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    fixed = {"use_cache": True, **sampling}
    if getattr(getattr(model, "generation_config", None), "pad_token_id", None) is None:
        fixed["pad_token_id"] = tokenizer.eos_token_id
    if together is not None:
        fixed["synced_gpus"] = True
    if getattr(getattr(model, "generation_config", None), "stop_strings", None):
        fixed["tokenizer"] = tokenizer
    with seeded(seed, device), one_text(model):
        if model.config.is_encoder_decoder:
            ids, room = _source(model, tokenizer, prompt, report)
            continuation = _generate(model, ids, min(max_new_tokens, room), device, fixed)
        else:
            ids = _question(tokenizer, prompt) if chat else _beginning(tokenizer, prompt)
            continuation = _continue(model, ids, max_new_tokens, device, fixed, report, together)
    return str(tokenizer.decode(continuation, skip_special_tokens=True))


def _continue(
    model: Any,
    ids: list[int],
    max_new_tokens: int,
    device: torch.device,
    fixed: Mapping[str, object],
    report: Callable[[str], None],
    together: Axis | None,
) -> list[int]:
    """The tokens generated after `ids`, conditioned on as many tokens as the model has positions for.

    Ranks that generate together make as many passes at a time as all of their texts have positions for.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is None:
        return _generate(model, ids, max_new_tokens, device, fixed)[len(ids) :]
    if len(ids) >= positions:
        # One position is reserved for the first new token.
        _report_cut(report, len(ids), positions - 1, "first")
    window, continuation, wanted = ids[-(positions - 1) :], list[int](), max_new_tokens
    while passes := _least(min(wanted, positions - len(window)) if wanted else 0, together):
        if not wanted:
            # The text is finished; the passes are for the weights that other ranks gather.
            _generate(model, window[-1:], passes, device, fixed)
            continue
        new_ids = _generate(model, window, passes, device, fixed)[len(window) :]
        continuation += new_ids
        ended = len(new_ids) < passes or new_ids[-1] in _ends(model)
        wanted = 0 if ended else max_new_tokens - len(continuation)
        window = window + new_ids
        if len(window) >= positions:
            window = window[-max(1, int(KEPT_SHARE * positions)) :]
    return continuation


def _least(passes: int, together: Axis | None) -> int:
    """The fewest passes that a rank wants which wants any; 0 if none does."""
    everyones = [passes] if together is None else together.gather(passes)
    return min((one for one in everyones if one), default=0)


def _generate(
    model: Any, ids: list[int], max_new_tokens: int, device: torch.device, fixed: Mapping[str, object]
) -> list[int]:
    inputs = torch.tensor([ids], device=device)
    output = model.generate(
        input_ids=inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=max_new_tokens, **fixed
    )
    return [int(token) for token in output[0]]


def _ends(model: Any) -> list[int]:
    """Tokens that end the model's output."""
    ids = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return ids if isinstance(ids, list) else [] if ids is None else [ids]


def _report_cut(report: Callable[[str], None], tokens: int, fit: int, which: str) -> None:
    report(f"the prompt has {tokens} tokens and {fit} fit the model's context: the {which} {tokens - fit} are left out")


def _beginning(tokenizer: Any, prompt: str) -> list[int]:
    """The tokens of a prompt as the exported tokenizer makes them: it begins as documents begin."""
    ids: list[int] = tokenizer(prompt)["input_ids"]
    return ids


def _question(tokenizer: Any, prompt: str) -> list[int]:
    """The tokens of a message in the chat template, which adds the first token itself."""
    ids: list[int] = tokenizer(chat_prompt(tokenizer, prompt), add_special_tokens=False)["input_ids"]
    return ids


def _source(model: Any, tokenizer: Any, prompt: str, report: Callable[[str], None]) -> tuple[list[int], int]:
    """The encoder's tokens, made by the exported tokenizer and cut to fit; and the maximum number of decoder tokens."""
    ids: list[int] = tokenizer(prompt)["input_ids"]
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is None:
        return ids, 10**9
    if len(ids) > positions:
        _report_cut(report, len(ids), positions, "last")
        ids = [*ids[: positions - 1], ids[-1]]
    return ids, positions - 1
