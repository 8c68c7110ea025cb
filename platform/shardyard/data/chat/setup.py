"""The chat template that a tokenizer leaves training with: everything in it that training used."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from transformers import PreTrainedTokenizerFast

from shardyard.data.chat.dialect import ANSWER, OTHER_ANSWER, SAID, USER
from shardyard.data.chat.template import PLAIN_TEMPLATE, Template, common_prefix
from shardyard.errors import DataError
from shardyard.recipe.chat_template import template_text


def add_chat_template(
    tokenizer: PreTrainedTokenizerFast, template: str | None = None, variables: Mapping[str, object] | None = None
) -> bool:
    """Give a tokenizer its chat template, which is saved with it; doing so again changes nothing.

    A tokenizer without a template gets the plain one. One that cannot write the header of an answer for the model to
    continue is completed, so that models are asked as they are trained.

    Args:
        template: a Jinja file, or its text; replaces the tokenizer's.
        variables: values that the template uses wherever none are passed to it.

    Returns:
        Whether the template was completed.

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
    source = tokenizer.chat_template
    return _complete(tokenizer, source) if isinstance(source, str) else False


def with_defaults(template: str, variables: Mapping[str, object]) -> str:
    """The template with default values of its variables."""
    head = "".join(
        f"{{%- if {name} is not defined %}}{{%- set {name} = {_literal(value)} %}}{{%- endif %}}"
        for name, value in sorted(variables.items())
    )
    # The line break after a block is removed by transformers, as one before the template's own text would be.
    return template if template.startswith(head) else f"{head}\n{template}"


def _complete(tokenizer: PreTrainedTokenizerFast, source: str) -> bool:
    """Add the header of an answer to a template that does not write one for the model to continue."""
    template = Template(tokenizer)
    asked, answered, other = (template.accepts(turns) for turns in ([USER], [USER, ANSWER], [USER, OTHER_ANSWER]))
    if asked is None or answered is None or other is None or SAID not in answered:
        return False
    header = common_prefix(answered, other)[len(asked) :]
    if not answered.startswith(asked) or not header.strip() or _asks(template) != asked:
        return False
    added = f"{{% if add_generation_prompt %}}{{{{ {_literal(header)} }}}}{{% endif %}}"
    tokenizer.chat_template = source.removesuffix("\n") + added
    if _asks(template) == asked + header and template.accepts([USER, ANSWER]) == answered:
        return True
    tokenizer.chat_template = source
    return False


def _asks(template: Template) -> str | None:
    return template.accepts([USER], answering=True)


def _for_each(templates: str | Mapping[str, str], change: Callable[[str], str]) -> str | dict[str, str]:
    if isinstance(templates, str):
        return change(templates)
    return {name: change(text) for name, text in templates.items()}


def _literal(value: object) -> str:
    """A JSON value as Jinja writes it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(name)}: {_literal(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return "none" if value is None else json.dumps(value, ensure_ascii=False)
