"""lm-evaluation-harness on an exported model, with a task of one's own and no network."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

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

DOCS = Path(__file__).parents[2] / "docs"

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
    share = right / len(QUESTIONS)
    assert found["choice"]["acc"] == share
    # As lm-eval's own mean_stderr: the sample standard deviation over √n.
    each = [1.0] * right + [0.0] * (len(QUESTIONS) - right)
    assert found["choice"]["acc_stderr"] == pytest.approx(statistics.stdev(each) / len(QUESTIONS) ** 0.5)
    assert run_tasks(model, [task(tmp_path, "json", more)], limit=1)["choice"]["acc"] in (0.0, 1.0)


def likelihood(loaded: PreTrainedModel, tokenizer: Any, context: str, continuation: str) -> float:
    """As the harness computes it: white space that ends the context belongs to the continuation, and the continuation
    is what the tokens of the whole text have behind those of the context."""
    bare = context.rstrip()
    whole = tokenizer(context + continuation)["input_ids"]
    prompt = tokenizer(bare)["input_ids"]
    return log_probability(loaded, prompt, whole[len(prompt) :])


def test_the_harness_puts_a_space_before_an_answer_unless_the_task_says_otherwise(model: Path, tmp_path: Path) -> None:
    """The default `target_delimiter` is a space, also behind a prompt that ends with a line break. With it, a model
    that never saw this space prefers the other answer to some documents."""
    words = ("trains", "sleeps", "falls", "waits", "a byte", "none", "is", "the loss", "of the model", "x")
    questions = [{"prompt": f"what does {a} do?\n", "chosen": a, "rejected": b} for a in words for b in words if a != b]
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in questions))
    loaded, tokenizer = AutoModelForCausalLM.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)
    more = f"dataset_kwargs: {{data_files: {{validation: {data}}}}}\n"
    chosen: dict[str, list[bool]] = {}
    for delimiter, setting in ((" ", ""), ("", 'target_delimiter: ""\n')):
        chosen[delimiter] = [
            likelihood(loaded, tokenizer, question["prompt"], delimiter + question["chosen"])
            > likelihood(loaded, tokenizer, question["prompt"], delimiter + question["rejected"])
            for question in questions
        ]
        found = run_tasks(model, [task(tmp_path, "json", more + setting)])
        assert found["choice"]["acc"] == pytest.approx(sum(chosen[delimiter]) / len(questions))
    assert chosen[" "] != chosen[""]
    shipped = (DOCS / "tasks/docstring-choice.yaml").read_text()
    assert 'doc_to_text: "{{prompt}}\\n"' in shipped
    assert 'target_delimiter: ""' in shipped


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
