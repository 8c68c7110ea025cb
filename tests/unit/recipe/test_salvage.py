"""One mistake in a recipe is one problem: what only follows from it is not told, and what does not is."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardyard.errors import RecipeError
from shardyard.recipe.loading.load import load_recipe

BERT = """name: tiny
model: {family: bert, config: {num_hidden_layers: 2, vocab_size: 4096}}
objective: masked_lm
masking: {probability: 0.2}
tokenizer: wordpiece-docs-4k
data: {sequence_length: 64, train: [{source: python-docs}]}
train: {steps: 10, global_batch: 8}
optimizer: {lr: 1e-3}
schedule: {warmup: 2}
"""
VISION = """name: seen
model: {family: vit, config: {image_size: 32, patch_size: 8}}
objective: image_classification
image: {size: 32, flip: 0.5}
data: {train: [{path: fashion-mnist}]}
train: {steps: 10, global_batch: 8}
optimizer: {lr: 1e-3}
"""


def problems(text: str, folder: Path, *overrides: str) -> list[str]:
    path = folder / "recipe.yaml"
    path.write_text(text)
    try:
        load_recipe(str(path), overrides)
    except RecipeError as error:
        return [f"{problem.path}: {problem.message}" for problem in error.problems]
    return []


@pytest.mark.parametrize(
    ("text", "right", "wrong", "path"),
    [
        (BERT, "objective: masked_lm", "objective: masked_lmm", "objective"),
        (BERT, "objective: masked_lm", "objective: xyz", "objective"),
        (BERT, "objective: masked_lm", "objective: [masked_lm]", "objective"),
        (BERT, "objective: masked_lm", "obective: masked_lm", "obective"),
        (BERT, "optimizer:", "optmizer:", "optmizer"),
        (BERT, "model:", "modell:", "modell"),
        (BERT, "global_batch:", "globl_batch:", "train.globl_batch"),
        (BERT, "masking:", "maskng:", "maskng"),
        (VISION, "image_classification", "image_clasification", "objective"),
        (VISION, "objective: image_classification", "objektive: image_classification", "objektive"),
    ],
)
def test_a_typo_is_one_problem(text: str, right: str, wrong: str, path: str, tmp_path: Path) -> None:
    before = problems(text, tmp_path)
    found = problems(text.replace(right, wrong, 1), tmp_path)
    assert [one for one in found if one not in before][:1] != []
    assert [one.partition(":")[0] for one in found if one not in before] == [path]


def test_mistakes_below_a_mistyped_section_are_found(tmp_path: Path) -> None:
    text = BERT.replace("optimizer: {lr: 1e-3}", "optmizer: {lrr: 1e-3, eps: many}")
    assert [one.partition(":")[0] for one in problems(text, tmp_path)] == ["optmizer", "optimizer.lrr", "optimizer.eps"]


def test_what_does_not_follow_from_the_mistake_is_told(tmp_path: Path) -> None:
    """Whatever the objective is: three workers cannot share 8 rows, and 5 rows do not make up 8."""
    text = BERT.replace("masked_lm", "masked_lmm", 1) + "cluster: {workers: 3}\n"
    found = problems(text, tmp_path)
    assert [one.partition(":")[0] for one in found] == ["objective", "train.global_batch"]


def test_two_keys_for_one_field_are_not_joined(tmp_path: Path) -> None:
    text = BERT.replace("optimizer: {lr: 1e-3}", "optimizer: {lr: 1e-3, lrr: 2e-3}")
    assert problems(text, tmp_path) == ["optimizer.lrr: unknown key 'lrr'; did you mean 'lr'?"]


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("learning_rate=3", "did you mean 'optimizer.lr'?"),
        ("optimizer.learning_rate=3", "did you mean 'lr'?"),
        ("train.batch_size=3", "did you mean 'global_batch'? (rows of one optimizer step, over all workers)"),
        ("num_hidden_layers=3", "did you mean 'model.config.num_hidden_layers'?"),
        ("train.gradient_accumulation_steps=3", "accumulation follows from"),
        ("training.steps=3", "did you mean 'train'?"),
    ],
)
def test_names_of_other_tools_are_told_what_they_are_here(override: str, hint: str, tmp_path: Path) -> None:
    (found,) = problems(BERT, tmp_path, override)
    assert hint in found


def test_a_section_at_a_wrong_depth_is_told_where_it_belongs(tmp_path: Path) -> None:
    text = BERT.replace("schedule: {warmup: 2}", "").replace("train: {steps: 10, global_batch: 8}", "")
    text += "train:\n  steps: 10\n  global_batch: 8\n  schedule: {warmup: 2}\n"
    assert problems(text, tmp_path) == [
        (
            "train.schedule: unknown key 'schedule'; it belongs at the top of the recipe, not below train; in a file, "
            "check its indentation"
        )
    ]


def test_a_key_of_recipes_in_a_sweep_is_told_where_it_belongs(tmp_path: Path) -> None:
    from shardyard.recipe.sweep.load import load_sweep

    path = tmp_path / "sweep.yaml"
    path.write_text(
        "name: s\nrecipe: gpt/quickstart\nparameters: {optimizer.lr: {values: [1e-3]}}\nmodel: {family: gpt2}\n"
    )
    with pytest.raises(RecipeError, match="unknown key 'model'; it is a key of recipes: set it in the recipe"):
        load_sweep(str(path))
