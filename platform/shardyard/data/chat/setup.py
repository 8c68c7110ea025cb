"""The chat template that a tokenizer leaves training with: everything in it that training used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from shardyard.data.chat.conversation import Conversation
from shardyard.data.chat.dialect import ANSWER, OTHER_ANSWER, USER
from shardyard.data.chat.template import PLAIN_TEMPLATE, Template, common_prefix
from shardyard.errors import DataError, UnusableRowError


def add_chat_template(
    tokenizer: PreTrainedTokenizerFast, template: str | None = None, variables: Mapping[str, object] | None = None
) -> None:
    """Give a tokenizer its chat template, which is saved with it; doing so again changes nothing.

    A tokenizer without a template gets the plain one. One that cannot write the header of an answer for the model to
    continue is completed, so that models are asked as they are trained.

    Args:
        template: a Jinja file, or its text; replaces the tokenizer's.
        variables: values that the template uses wherever none are passed to it.

    Raises:
        DataError: the file cannot be read, or the tokenizer has no token that can end an answer.
    """
    if template is not None:
        tokenizer.chat_template = template_text(template)
    if tokenizer.chat_template is None:
        if tokenizer.eos_token is None:
            raise DataError(
                "the tokenizer has neither a chat template nor an end-of-text token (eos_token) to end answers with; "
                "use one that has one."
            )
        tokenizer.chat_template = PLAIN_TEMPLATE
    if variables:
        tokenizer.chat_template = _for_each(tokenizer.chat_template, lambda text: with_defaults(text, variables))
    if isinstance(tokenizer.chat_template, str):
        _complete(tokenizer, tokenizer.chat_template)


def template_text(template: str) -> str:
    """The text of a template that is given as text or as the path of a file.

    Raises:
        DataError: the file cannot be read.
    """
    if is_text(template):
        return template
    try:
        return Path(template).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"chat.template: {template} cannot be read: {error}.") from error


def is_text(template: str) -> bool:
    """Whether a template is given as text and not as a file."""
    return "{%" in template or "{{" in template


def with_defaults(template: str, variables: Mapping[str, object]) -> str:
    """The template with default values of its variables."""
    head = "".join(
        f"{{%- if {name} is not defined %}}{{%- set {name} = {_literal(value)} %}}{{%- endif %}}"
        for name, value in sorted(variables.items())
    )
    # The line break after a block is removed by transformers, as one before the template's own text would be.
    return template if template.startswith(head) else f"{head}\n{template}"


def _complete(tokenizer: PreTrainedTokenizerFast, source: str) -> None:
    """Add the header of an answer to a template that does not write one for the model to continue."""
    template = Template(tokenizer)
    asked = template.accepts([USER])
    texts = [template.accepts([USER, answer]) for answer in (ANSWER, OTHER_ANSWER)]
    if asked is None or None in texts or template.render(Conversation([USER]), answering=True) != asked:
        return
    header = common_prefix(*(text for text in texts if text is not None))
    if not header.startswith(asked) or not header[len(asked) :].strip():
        return
    header = header[len(asked) :]
    tokenizer.chat_template = (
        f"{source.removesuffix(chr(10))}{{% if add_generation_prompt %}}{{{{ {_literal(header)} }}}}{{% endif %}}"
    )
    try:
        completed = template.render(Conversation([USER]), answering=True) == asked + header
    except UnusableRowError:
        completed = False
    if not completed or template.accepts([USER, ANSWER]) != texts[0]:
        tokenizer.chat_template = source


def _for_each(templates: str | Mapping[str, str], change: object) -> str | dict[str, str]:
    assert callable(change)
    if isinstance(templates, str):
        return str(change(templates))
    return {name: str(change(text)) for name, text in templates.items()}


def _literal(value: object) -> str:
    """A JSON value as Jinja writes it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(name)}: {_literal(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return "none" if value is None else json.dumps(value, ensure_ascii=False)
