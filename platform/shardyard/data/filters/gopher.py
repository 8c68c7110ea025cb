"""The quality of a document by Gopher's rules (Rae et al. 2021, arXiv:2112.11446, section A.1.1)."""

from __future__ import annotations

from collections.abc import Iterator

from shardyard.data.filters.outcome import Clean, Removed
from shardyard.data.filters.parts import lines_of, words_of
from shardyard.recipe.sections.filters import GopherQuality

_BULLETS = ("•", "‣", "◦", "⁃", "●", "○", "▪", "-", "*")
_ELLIPSES = ("...", "…")
# Taken off a word before it is compared with the stop words.
_AROUND = ".,;:!?\"'()[]{}«»“”‘’…"


def gopher_quality(step: GopherQuality) -> Clean:
    """Remove documents of low quality."""

    def clean(text: str) -> str | Removed:
        reason = next(_broken(step, text), None)
        return text if reason is None else Removed(reason)

    return clean


def _broken(step: GopherQuality, text: str) -> Iterator[str]:
    """The rules that a document breaks."""
    words, lines = words_of(text), lines_of(text)
    number = max(1, len(words))
    if step.min_words is not None and len(words) < step.min_words:
        yield f"fewer than {step.min_words} words"
    if step.max_words is not None and len(words) > step.max_words:
        yield f"more than {step.max_words} words"
    mean = sum(map(len, words)) / number
    if step.min_mean_word_length is not None and mean < step.min_mean_word_length:
        yield f"words shorter than {step.min_mean_word_length:g} characters on average"
    if step.max_mean_word_length is not None and mean > step.max_mean_word_length:
        yield f"words longer than {step.max_mean_word_length:g} characters on average"
    most = step.max_symbols_per_word
    if most is not None and text.count("#") / number > most:
        yield f"more than {most:g} hash signs a word"
    if most is not None and sum(map(text.count, _ELLIPSES)) / number > most:
        yield f"more than {most:g} ellipses a word"
    if step.max_bullet_lines is not None and _share(lines, starts=_BULLETS) > step.max_bullet_lines:
        yield f"more than {step.max_bullet_lines:g} of the lines begin with a bullet"
    if step.max_ellipsis_lines is not None and _share(lines, ends=_ELLIPSES) > step.max_ellipsis_lines:
        yield f"more than {step.max_ellipsis_lines:g} of the lines end with an ellipsis"
    letters = sum(any(map(str.isalpha, word)) for word in words) / number
    if step.min_alphabetic_words is not None and letters < step.min_alphabetic_words:
        yield f"less than {step.min_alphabetic_words:g} of the words have a letter"
    found = {word.lower().strip(_AROUND) for word in words}
    if step.min_stop_words is not None and len(found & set(step.stop_words)) < step.min_stop_words:
        yield f"fewer than {step.min_stop_words} stop words"


def _share(lines: list[str], starts: tuple[str, ...] = (), ends: tuple[str, ...] = ()) -> float:
    return sum(line.startswith(starts) or line.endswith(ends) for line in lines) / max(1, len(lines))
