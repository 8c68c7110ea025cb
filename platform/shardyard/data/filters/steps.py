"""Steps from their descriptions: one table of names, and documents through all of them in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shardyard.data.filters import maps
from shardyard.data.filters.c4 import c4
from shardyard.data.filters.contamination import decontaminate, index_of
from shardyard.data.filters.fineweb import fineweb
from shardyard.data.filters.gopher import gopher_quality
from shardyard.data.filters.language import language
from shardyard.data.filters.length import length
from shardyard.data.filters.outcome import Clean, Removed
from shardyard.data.filters.pattern import regex
from shardyard.data.filters.repetition import gopher_repetition
from shardyard.recipe.sections.filters import EvaluationSet, Step

# A rule needs one function here, and its section in recipe/sections/filters.py.
MAKERS: Mapping[str, Callable[[Any], Clean]] = {
    "length": length,
    "language": language,
    "regex": regex,
    "gopher_repetition": gopher_repetition,
    "gopher_quality": gopher_quality,
    "c4": c4,
    "fineweb": fineweb,
    "unicode": maps.unicode,
    "whitespace": maps.whitespace,
    "lowercase": maps.lowercase,
    "mask": maps.mask,
}
# Keys of a message that are no text of it.
_NOT_TEXT = ("role", "from", "name", "type", "id", "tool_call_id")
ReadTexts = Callable[[EvaluationSet], Iterable[str]]


def make_step(step: Step, read_texts: ReadTexts) -> Clean:
    """The function of a step that looks at single documents.

    Args:
        read_texts: reads the texts of an evaluation set.

    Raises:
        UsageError: a library is not installed, or does not know a value.
        DataError: an evaluation set cannot be read.
    """
    assert not step.compares, "checked with the recipe"
    if step.decontaminate is not None:
        contamination = step.decontaminate
        texts = (text for one in contamination.against for text in read_texts(one))
        return decontaminate(contamination, index_of(contamination, texts))
    return MAKERS[step.name](getattr(step, step.name))


@dataclass(frozen=True)
class Steps:
    """Steps in order, for the examples of a stream."""

    steps: Sequence[tuple[str, Clean]]

    def clean(self, text: str) -> str | Removed:
        """The text after all steps, or the name of the step that removes it with its reason."""
        for name, step in self.steps:
            outcome = step(text)
            if isinstance(outcome, Removed):
                return Removed(f"{name}: {outcome.reason}")
            if not outcome:
                return Removed(f"{name}: nothing is left")
            text = outcome
        return text

    def of_example(self, example: Any) -> Any:
        """The example after all steps, or `Removed`.

        Rows with the column `text` are judged and changed by it, others judged by all their texts.
        """
        if isinstance(example, str):
            return self.clean(example)
        text = example.get("text")
        outcome = self.clean(text if isinstance(text, str) else "\n".join(_texts(example)))
        if isinstance(outcome, Removed):
            return outcome
        return {**example, "text": outcome} if isinstance(text, str) else example


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        # Encoded pictures and recordings have no text.
        inner = () if "bytes" in value else [one for key, one in value.items() if key not in _NOT_TEXT]
        for one in inner:
            yield from _texts(one)
    elif isinstance(value, Sequence) and not isinstance(value, bytes):
        for one in value:
            yield from _texts(one)
