"""Answers of a vision–language model about pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shardyard.data.media.images import decoded
from shardyard.data.multimodal.conversation import prompt_inputs
from shardyard.engine.hooks.generate import seeded
from shardyard.errors import UsageError
from shardyard.models.generation import one_text
from shardyard.objectives.base import as_model


def answer(
    model: Any,
    processor: Any,
    prompt: str,
    pictures: Sequence[Path],
    *,
    max_new_tokens: int,
    device: torch.device,
    temperature: float = 0.0,
    seed: int = 0,
) -> str:
    """The model's answer to a prompt about pictures; greedy at temperature 0.

    Raises:
        UsageError: there is no picture, or a file is missing.
        DataError: a picture cannot be decoded, or the processor refuses the prompt.
    """
    if not pictures:
        raise UsageError("this model answers about pictures; name at least one file with --image.")
    missing = next((path for path in pictures if not path.is_file()), None)
    if missing is not None:
        raise UsageError(f"--image {missing}: there is no such file.")
    images = [decoded({"bytes": path.read_bytes(), "path": str(path)}, "RGB") for path in pictures]
    found = prompt_inputs(processor, prompt, images)
    inputs = {name: _as_input(model, value.to(device)) for name, value in found.items()}
    length = inputs["input_ids"].shape[1]
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    with seeded(seed, device), one_text(model):
        written = model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            pad_token_id=processor.tokenizer.eos_token_id,
            use_cache=True,
            **sampling,
        )
    return str(processor.tokenizer.decode(written[0, length:], skip_special_tokens=True))


def _as_input(model: Any, value: Tensor) -> Tensor:
    return as_model(model, value) if value.is_floating_point() else value
