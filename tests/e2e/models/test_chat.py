"""A chat run from a template file: trained through Ray, sampled, measured and exported without the file."""

from __future__ import annotations

from pathlib import Path

import pytest
from ruamel.yaml import YAML
from transformers import AutoTokenizer

from shardyard.tracking.files import read_jsonl
from support.cli import Command
from support.objectives import instruction

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

# It writes no header for an answer, and shows an answer otherwise once the conversation goes on.
TEMPLATE = (
    "{{ style }}{% for m in messages %}[{{ m.role }}]{{ '!' if m.role == 'assistant' and loop.last }}{{ m.content }}"
    "{{ eos_token }}{% endfor %}"
)


def test_a_run_leaves_with_the_template_that_it_was_trained_with(tmp_path: Path) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text(TEMPLATE)
    fields = instruction.recipe_fields(instruction.write_data(tmp_path))
    fields |= {
        "chat": {"template": str(template), "template_kwargs": {"style": "Be brief."}},
        "cluster": {"workers": 1},
    }
    recipe = tmp_path / "chat.yaml"
    with recipe.open("w") as file:
        YAML(typ="safe").dump(fields, file)
    with Command("launch", recipe, runs=tmp_path / "runs") as command:
        code, output = command.finish()
    assert code == 0, output
    kept = YAML(typ="safe").load((command.folder / "resolved.yaml").read_text())
    assert kept["chat"]["template"] == TEMPLATE
    notices = " ".join(str(event.get("text")) for event in read_jsonl(command.folder / "events.jsonl"))
    assert "the chat template writes no header for the model to continue" in notices
    assert "the chat template shows an answer otherwise once the conversation goes on" in notices
    template.unlink()
    final = AutoTokenizer.from_pretrained(command.folder / "final")
    asked = [{"role": "user", "content": "say tree once"}]
    shown = final.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert shown == f"Be brief.[user]say tree once{final.eos_token}[assistant]!"
    with Command("eval", "latest", "--json", runs=command.runs) as measured:
        code, output = measured.finish()
    assert code == 0, output
    assert f'"loss": {command.metrics()[-1]["eval/validation/loss"]:.6f}'[:14] in output
