"""A tokenizer that is not that of the pretrained model: what counts as another one, and what is said about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from shardyard.data.tokenizers.compare import other_tokens
from shardyard.data.tokenizers.tokenizer import load_tokenizer
from shardyard.errors import RecipeError
from shardyard.launch.run.prepare import prepare
from shardyard.planning.plan import World
from shardyard.recipe.schema import Recipe
from support.pretrained import write_pretrained
from support.tiny import tiny_recipe

RESERVED = [f"<|reserved_{n}|>" for n in range(4)]


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    """A model whose tokenizer has bytes, an end and four reserved tokens."""
    base = write_pretrained(tmp_path / "base", vocabulary=261)
    load_tokenizer("bytes", RESERVED).save_pretrained(base)
    return base


def changed(base: Path, folder: Path, change: Callable[[Any], None]) -> Any:
    """The tokenizer of `base` with a changed tokenizer.json."""
    load_tokenizer(str(base)).save_pretrained(folder)
    path = folder / "tokenizer.json"
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))
    return AutoTokenizer.from_pretrained(folder)


def moved(fields: Any) -> None:
    """Each byte has the id of the next one."""
    vocabulary = fields["model"]["vocab"]
    fields["model"]["vocab"] = {token: (id + 1) % 256 for token, id in vocabulary.items()}


def swapped(fields: Any) -> None:
    vocabulary = fields["model"]["vocab"]
    first, second = (token for token, id in vocabulary.items() if id in (0, 1))
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]


def renamed(fields: Any) -> None:
    """Reserved tokens are used for turns, as fine-tuned models do."""
    for token in fields["added_tokens"]:
        token["content"] = {RESERVED[0]: "<|im_start|>", RESERVED[1]: "<|im_end|>"}.get(
            token["content"], token["content"]
        )


def lowered(fields: Any) -> None:
    fields["normalizer"] = json.loads(normalizers.Lowercase().__getstate__())


@pytest.mark.parametrize(
    ("change", "few", "text"),
    [
        (moved, False, "256 of 261 ids stand for other tokens, the first of them 0: "),
        (swapped, True, "2 of 261 ids stand for other tokens, the first of them 0: "),
        (renamed, True, "of them 257: '<|reserved_0|>' for the model and '<|im_start|>' here"),
        (lowered, True, "it has the same tokens, but divides texts into others of them"),
    ],
)
def test_other_tokens_are_counted_and_the_first_is_named(
    pretrained: Path, tmp_path: Path, change: Callable[[Any], None], few: bool, text: str
) -> None:
    found = other_tokens(str(pretrained), changed(pretrained, tmp_path / "other", change))
    assert found is not None
    assert text in found.text
    assert found.few is few


def test_another_end_token_is_told(pretrained: Path) -> None:
    tokenizer = load_tokenizer(str(pretrained))
    tokenizer.eos_token = RESERVED[1]
    found = other_tokens(str(pretrained), tokenizer)
    assert found is not None
    assert found.text == "eos_token is '<|endoftext|>' for the model and '<|reserved_1|>' here"
    assert found.few


def test_longer_shorter_and_padded_vocabularies_are_the_same(pretrained: Path, tmp_path: Path) -> None:
    assert other_tokens(str(pretrained), load_tokenizer(str(pretrained), ["<|im_start|>"])) is None
    assert other_tokens(str(pretrained), load_tokenizer("bytes")) is None
    padding = load_tokenizer("bytes", RESERVED)
    padding.pad_token = RESERVED[3]
    assert other_tokens(str(pretrained), padding) is None
    without = write_pretrained(tmp_path / "without", "llama")
    tokenizer = load_tokenizer("bytes")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    assert other_tokens(str(without), tokenizer) is None, "a model without a tokenizer is not compared"


def test_a_plan_refuses_other_tokens_and_tells_of_a_few(pretrained: Path, tmp_path: Path) -> None:
    def planned(tokenizer: str, **model: Any) -> Any:
        recipe: Recipe = tiny_recipe(Path("unread"), tokenizer=tokenizer)
        section = recipe.model.model_copy(
            update={"pretrained": str(pretrained), "config": {}, "family": "gpt2", **model}
        )
        return prepare(recipe.model_copy(update={"model": section}), World(size=1, gpu=False))

    for change in (moved, renamed):
        changed(pretrained, tmp_path / change.__name__, change)
    other = str(tmp_path / "moved")
    with pytest.raises(RecipeError, match=rf"tokenizer: is {other}, and model\.pretrained {pretrained} was") as refused:
        planned(other)
    assert f"set it to {pretrained}, or train with other tokens on purpose: `-s model.probes" in str(refused.value)
    probes = tiny_recipe(Path("unread")).model.probes.model_copy(update={"tokenizer": False})
    assert planned(other, probes=probes).steps == 20
    (told,) = (
        notice
        for notice in planned(str(tmp_path / "renamed")).architecture.findings.notices
        if notice.startswith("tokenizer")
    )
    assert "trained with another tokenizer: 2 of 261 ids stand for other tokens" in told
    assert not planned(str(pretrained)).architecture.findings.notices
