"""A chat template of a recipe: a file, or the text itself. Pure."""

from __future__ import annotations

from pathlib import Path

from shardyard.errors import DataError
from shardyard.recipe.schema import Recipe


def is_text(template: str) -> bool:
    """Whether a template is given as text and not as the path of a file."""
    return "{%" in template or "{{" in template


def template_text(template: str) -> str:
    """The text of a template.

    Raises:
        DataError: the file cannot be read.
    """
    if is_text(template):
        return template
    try:
        return Path(template).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"chat.template: {template} cannot be read: {error}.") from error


def with_template_text(recipe: Recipe) -> Recipe:
    """The recipe with the text of its chat template, so that a run does not depend on the file."""
    template = recipe.chat.template
    if template is None or is_text(template):
        return recipe
    return recipe.model_copy(update={"chat": recipe.chat.model_copy(update={"template": template_text(template)})})
