"""Rules for conversations: the chat template and which answers are trained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path as FilePath

from shardyard.objectives.registry import objective_spec
from shardyard.recipe.chat_template import is_text
from shardyard.recipe.fields import Path
from shardyard.recipe.schema import Recipe

Finding = tuple[Path, str]


def chat_rules(recipe: Recipe) -> Iterator[Finding]:
    """All findings about `chat`."""
    chat, spec = recipe.chat, objective_spec(recipe.objective)
    if "chat" not in spec.sections:
        return
    template = chat.template
    if template is not None and not is_text(template) and not FilePath(template).expanduser().is_file():
        yield (
            ("chat", "template"),
            f"no file {template!r} from the current folder, nor the text of a template, which would have {{{{ or {{%",
        )
    for name in chat.template_kwargs:
        if not name.isidentifier():
            yield ("chat", "template_kwargs"), f"{name!r} is no name of a variable"
    if chat.loss_on is not None and spec.frozen == "reference":
        yield (
            ("chat", "loss_on"),
            f"does nothing for {recipe.objective}, which compares the answers of a pair; remove it",
        )
