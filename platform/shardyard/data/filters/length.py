"""Documents of a given length in characters, bytes, words or tokens."""

from __future__ import annotations

from collections.abc import Callable

from shardyard.data.filters.outcome import Clean, Removed
from shardyard.data.filters.parts import words_of
from shardyard.recipe.sections.filters import Length


def length(step: Length) -> Clean:
    """Remove documents that are too short or too long."""
    measure, least, most = _measure(step), step.min, step.max
    short, long = (Removed(f"{word} than {bound} {step.unit}") for word, bound in (("fewer", least), ("more", most)))

    def clean(text: str) -> str | Removed:
        number = measure(text)
        if least is not None and number < least:
            return short
        return long if most is not None and number > most else text

    return clean


def _measure(step: Length) -> Callable[[str], int]:
    if step.unit == "characters":
        return len
    if step.unit == "bytes":
        return lambda text: len(text.encode())
    if step.unit == "words":
        return lambda text: len(words_of(text))
    from shardyard.data.tokenizers.tokenizer import load_tokenizer, plain_backend

    assert step.tokenizer is not None, "checked with the step"
    backend = plain_backend(load_tokenizer(step.tokenizer))
    return lambda text: len(backend.encode(text, add_special_tokens=False).ids)
