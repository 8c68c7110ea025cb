"""How conversations become text, and which answers are trained."""

from __future__ import annotations

from typing import Literal

from pydantic import JsonValue

from shardyard.recipe.sections.base import Section, described


class Chat(Section):
    """Conversations in a chat template (instruction, preference, vision_language)."""

    template: str | None = described(
        None,
        "Chat template: a Jinja file, or its text. It replaces that of the tokenizer and is exported with the model. "
        "Default: the tokenizer's own, or a plain one if it has none.",
    )
    template_kwargs: dict[str, JsonValue] = described(
        {},
        "Variables of the template, such as {enable_thinking: false}. They become defaults of the exported template; "
        "`chat_template_kwargs` of a row take precedence.",
    )
    loss_on: Literal["all", "last", "marked"] | None = described(
        None,
        "Answers that are trained: all, the last of each conversation, or what the template marks with "
        "{% generation %}. An answer that the template shows otherwise once the conversation goes on, such as without "
        "its reasoning, is trained in a row that ends with it. Default: marked if the template has such marks, else "
        "all.",
    )
