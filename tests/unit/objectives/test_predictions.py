"""What classifiers and taggers say about a text."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from shardyard.objectives import predictions
from support.wordpieces import tiny_wordpiece

TAGS = ("O", "B-LONG", "I-LONG")


class Model:
    """Gives the logits that it is handed, or those of each token by its text."""

    device = torch.device("cpu")

    def __init__(self, names: tuple[str, ...], logits: list[float] | dict[str, int]) -> None:
        self.config = SimpleNamespace(id2label=dict(enumerate(names)))
        self.logits, self.tokenizer, self.seen = logits, tiny_wordpiece(), 0

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        self.seen = input_ids.shape[1]
        if isinstance(self.logits, list):
            return SimpleNamespace(logits=torch.tensor([self.logits]))
        tokens = self.tokenizer.convert_ids_to_tokens(input_ids[0].tolist())
        classes = [self.logits.get(token, 0) for token in tokens]
        return SimpleNamespace(logits=torch.nn.functional.one_hot(torch.tensor([classes]), 3).float())


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_wordpiece()


def test_classes_labels_and_numbers(tokenizer: PreTrainedTokenizerFast) -> None:
    model = Model(("a", "b", "c", "d"), [0.0, 9.0, 1.0, -9.0])
    assert predictions.likeliest_classes(model, tokenizer, "the loss", 16) == "b 1.000, c 0.000, a 0.000"
    assert predictions.all_labels(model, tokenizer, "the loss", 16) == "b 1.000, c 0.731"
    assert predictions.all_labels(Model(("a",), [-1.0]), tokenizer, "the loss", 16) == "none"
    assert predictions.number(Model(("a",), [3.14159]), tokenizer, "the loss", 16) == "3.142"


def test_texts_are_cut_at_the_length_of_training(tokenizer: PreTrainedTokenizerFast) -> None:
    model = Model(("a",), [1.0])
    predictions.number(model, tokenizer, "the loss " * 50, 16)
    assert model.seen == 16


def test_tags_are_shown_as_entities(tokenizer: PreTrainedTokenizerFast) -> None:
    # The first piece of a word decides: `weight` is we ##ight.
    model = Model(TAGS, {"we": 1, "##ight": 0, "loss": 2, "rank": 1})
    assert predictions.tagged_words(model, tokenizer, "the weight loss a rank", 16) == "weight loss LONG, rank LONG"
    assert predictions.tagged_words(model, tokenizer, "the model", 16) == "none"
    model = Model(("NOUN", "VERB", "X"), {"we": 1})
    assert predictions.tagged_words(model, tokenizer, "the  weight", 16) == "the/NOUN weight/VERB"
