"""What classifiers and taggers say about a text, in words: the predictions that `shardyard sample` prints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from shardyard.objectives.token_classification.entities import entities, mark_entities
from shardyard.objectives.token_classification.rows import first_tokens

# Classes that are shown, the likeliest first.
SHOWN = 3
Predict = Callable[[Any, Any, str, int], str]
"""From model, tokenizer, text and the largest number of tokens to words."""


def likeliest_classes(model: Any, tokenizer: Any, text: str, length: int) -> str:
    """The likeliest classes of a text with their probabilities."""
    chances = _logits(model, tokenizer, text, length).softmax(-1)
    best = chances.topk(min(SHOWN, len(chances)))
    names = model.config.id2label
    return ", ".join(
        f"{names[number]} {chance:.3f}" for chance, number in zip(best[0].tolist(), best[1].tolist(), strict=True)
    )


def all_labels(model: Any, tokenizer: Any, text: str, length: int) -> str:
    """Every class whose probability is above one half, with it; `none` if there is none."""
    chances = _logits(model, tokenizer, text, length).sigmoid().tolist()
    found = [f"{model.config.id2label[at]} {chance:.3f}" for at, chance in enumerate(chances) if chance > 0.5]
    return ", ".join(found) or "none"


def number(model: Any, tokenizer: Any, text: str, length: int) -> str:
    """The predicted number."""
    return f"{float(_logits(model, tokenizer, text, length)):.4g}"


def tagged_words(model: Any, tokenizer: Any, text: str, length: int) -> str:
    """The entities of a text, or where tags mark none, every word with its tag. Words end at spaces, as in training."""
    words = text.split()
    inputs = tokenizer(" ".join(words), truncation=True, max_length=length, return_tensors="pt")
    found = _output(model, inputs).argmax(-1).tolist()
    names: dict[int, str] = model.config.id2label
    # A word without a token is outside.
    tags = [names[0]] * len(words)
    for token, word in first_tokens(inputs[0], words):
        tags[word] = names[found[token]]
    if not mark_entities(list(names.values())):
        return " ".join(f"{word}/{tag}" for word, tag in zip(words, tags, strict=True))
    spans = sorted(entities(tags), key=lambda entity: entity.start)
    return ", ".join(f"{' '.join(words[span.start : span.end])} {span.kind}" for span in spans) or "none"


def _logits(model: Any, tokenizer: Any, text: str, length: int) -> Tensor:
    return _output(model, tokenizer(text, truncation=True, max_length=length, return_tensors="pt"))


def _output(model: Any, inputs: Any) -> Tensor:
    """The logits of one text, without the axis of rows."""
    given = {name: value.to(model.device) for name, value in inputs.items() if name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        logits: Tensor = model(**given).logits[0].float()
    return logits
