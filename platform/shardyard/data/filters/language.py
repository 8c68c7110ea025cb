"""Documents in given languages, as lingua recognises them."""

from __future__ import annotations

from typing import Any

from shardyard.data.filters.outcome import Clean, Removed
from shardyard.errors import UsageError
from shardyard.extras import require
from shardyard.recipe.sections.filters import Language
from shardyard.suggest import suggestion


def language(step: Language) -> Clean:
    """Remove documents whose beginning is probably in none of the languages.

    The confidence of lingua is relative to the languages that it tells apart: it sums to 1 over them.

    Raises:
        UsageError: lingua is not installed, or does not know a language.
    """
    require("clean", "the step language", "lingua")
    import lingua

    known = {one.iso_code_639_1.name.lower(): one for one in lingua.Language.all()}
    for code in (*step.keep, *step.among):
        if code.lower() not in known:
            raise UsageError(f"lingua knows no language {code!r}; {suggestion(code, known)}")
    kept = [known[code.lower()] for code in dict.fromkeys(step.keep)]
    among = {*kept, *(known[code.lower()] for code in step.among)}
    builder: Any
    if not step.among:
        builder = lingua.LanguageDetectorBuilder.from_all_languages()
    elif len(among) == 1:
        raise UsageError("the step language tells apart one language alone; give others under `among`, or leave it out")
    else:
        builder = lingua.LanguageDetectorBuilder.from_languages(*sorted(among, key=lambda one: str(one.name)))
    detector = (builder if step.accurate else builder.with_low_accuracy_mode()).build()
    removed = Removed(f"not in {' or '.join(step.keep)} by a confidence of {step.min_confidence:g}")

    def clean(text: str) -> str | Removed:
        beginning = text[: step.characters]
        confidence = max((detector.compute_language_confidence(beginning, one) for one in kept), default=0.0)
        return text if confidence >= step.min_confidence else removed

    return clean
