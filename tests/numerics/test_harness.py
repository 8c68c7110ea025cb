"""lm-evaluation-harness on an exported model, with a task of one's own and no network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from shardyard.data.tokenizers.tokenizer import load_tokenizer
from shardyard.engine.inference.lm_eval import run_tasks
from shardyard.errors import DataError, UsageError
from shardyard.models.build import architecture_config, construct, special_token_ids
from shardyard.recipe.schema import Model

pytestmark = pytest.mark.slow

QUESTIONS = [
    {"prompt": "a model", "chosen": " trains", "rejected": " sleeps"},
    {"prompt": "the loss", "chosen": " falls", "rejected": " is a cat"},
    {"prompt": "a token", "chosen": " is a byte", "rejected": " is"},
    {"prompt": "one rank", "chosen": " waits", "rejected": " and another"},
]
TASK = """task: choice
dataset_path: {path}
{more}test_split: validation
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: "{{{{[chosen, rejected]}}}}"
doc_to_target: 0
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = load_tokenizer("bytes")
    section = Model(family="gpt2", config={"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 128})
    config = architecture_config(section, vocabulary=len(tokenizer), special_tokens=special_token_ids(tokenizer))
    torch.manual_seed(5)
    construct(section, config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def task(folder: Path, path: str, more: str = "") -> str:
    file = folder / "choice.yaml"
    file.write_text(TASK.format(path=path, more=more))
    return str(file)


def log_probability(model: PreTrainedModel, prompt: list[int], answer: list[int]) -> float:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    chosen = torch.tensor(answer)[:, None]
    return float(functional.log_softmax(logits.float(), dim=-1).gather(-1, chosen).sum())


def test_a_task_of_ones_own_gives_the_share_of_likelier_answers(model: Path, tmp_path: Path) -> None:
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    more = f"dataset_kwargs: {{data_files: {{validation: {data}}}}}\n"
    found = run_tasks(model, [task(tmp_path, "json", more)])
    loaded, tokenizer = AutoModelForCausalLM.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)
    right = 0
    for question in QUESTIONS:
        prompt, *answers = (tokenizer(question[name])["input_ids"] for name in ("prompt", "chosen", "rejected"))
        right += log_probability(loaded, prompt, answers[0]) > log_probability(loaded, prompt, answers[1])
    assert found["choice"]["acc"] == right / len(QUESTIONS)
    assert run_tasks(model, [task(tmp_path, "json", more)], limit=1)["choice"]["acc"] in (0.0, 1.0)


def test_what_is_no_task_is_said(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        run_tasks(model, [str(tmp_path / "none.yaml")])
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(UsageError, match="is not an lm-eval task: it lacks `task`"):
        run_tasks(model, [str(tmp_path / "list.yaml")])
    with pytest.raises(DataError, match="there is no dataset 'docstrings'"):
        run_tasks(model, [task(tmp_path, "shardyard:docstrings")])
    with pytest.raises(UsageError, match="lm-eval cannot run no-such-task"):
        run_tasks(model, ["no-such-task"])
