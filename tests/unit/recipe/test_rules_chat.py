"""Chat templates and answers of a recipe: what does not go together, and what the plan says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shardyard.launch.run.initial import locate
from shardyard.launch.run.prepare import prepare
from shardyard.planning.plan import World
from shardyard.planning.plan_text import rows
from shardyard.recipe.chat_template import with_template_text
from shardyard.recipe.loading.load import parse_recipe
from shardyard.recipe.rules.rules import check
from support.objectives import instruction, masked_lm, preference

MARKED = (
    "{% for m in messages %}{{ m.role }}:{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def findings(fields: dict[str, Any]) -> dict[str, str]:
    return {".".join(map(str, path)): message for path, message in check(parse_recipe(fields))}


@pytest.mark.parametrize(
    ("objective", "chat", "path", "message"),
    [
        (instruction, {"template": "gone.jinja"}, "chat.template", "no file 'gone.jinja' from the current folder"),
        (instruction, {"template_kwargs": {"a b": 1}}, "chat.template_kwargs", "'a b' is no name of a variable"),
        (preference, {"loss_on": "last"}, "chat.loss_on", "which compares the answers of a pair; remove it"),
        (
            masked_lm,
            {"loss_on": "last"},
            "chat",
            "does nothing for the objective masked_lm, only for vision_language, instruction, preference",
        ),
    ],
)
def test_what_does_not_go_together(tmp_path: Path, objective: Any, chat: Any, path: str, message: str) -> None:
    fields = objective.recipe_fields(objective.write_data(tmp_path))
    assert path not in findings(fields)
    assert message in findings({**fields, "chat": chat})[path]


def test_a_run_keeps_the_text_of_its_template(tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text(MARKED)
    fields = instruction.recipe_fields(instruction.write_data(tmp_path))
    recipe = parse_recipe({**fields, "chat": {"template": str(file)}})
    assert not findings({**fields, "chat": {"template": str(file)}})
    located, _ = locate(recipe, tmp_path)
    assert located.chat.template == MARKED
    assert with_template_text(located) == located


@pytest.mark.parametrize(
    ("chat", "trained", "why"),
    [
        ({}, "all", "from the prompt to the token that ends the turn"),
        ({"loss_on": "last"}, "last", "chat.loss_on"),
        ({"template": MARKED}, "marked", "what the template marks with {% generation %}"),
        ({"template": MARKED.replace("{{ eos_token }}", "")}, "marked", "the marks end before"),
    ],
)
def test_a_plan_says_which_answers_are_trained(tmp_path: Path, chat: Any, trained: str, why: str) -> None:
    fields = instruction.recipe_fields(instruction.write_data(tmp_path))
    plan = prepare(parse_recipe({**fields, "chat": chat}), World(1, gpu=False))
    shown = {name: (value, reason) for name, value, reason in rows(plan)}
    assert shown["trained answers"][0] == trained
    assert why in shown["trained answers"][1]
