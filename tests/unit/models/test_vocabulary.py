"""A pretrained model takes a longer tokenizer: its embeddings get rows, the same whoever makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoTokenizer

from shardyard.data.tokenizers.tokenizer import load_tokenizer
from shardyard.engine.components import make_components
from shardyard.errors import ModelError
from shardyard.launch.run.prepare import prepare
from shardyard.models.build import architecture_config, construct_pretrained, own_rows
from shardyard.models.export.export import export_model
from shardyard.models.frozen import frozen_causal_lm
from shardyard.models.vocabulary import Resized, padded, resize
from shardyard.planning.plan import World
from shardyard.planning.plan_text import rows
from shardyard.recipe.rules.rules import check
from shardyard.recipe.schema import Model
from support.pretrained import write_pretrained
from support.tiny import CONFIGS, tiny_recipe, write_corpus

ADDED = ["<|im_start|>", "<|im_end|>"]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_pretrained(tmp_path / "base", "llama")


def loaded(base: Path, vocabulary: int = 259, **section: Any) -> Any:
    model = Model(family="llama", pretrained=str(base), **section)
    return construct_pretrained(model, architecture_config(model, vocabulary=vocabulary), seed=7)


def test_new_rows_are_the_mean_of_the_others_as_in_transformers(base: Path) -> None:
    found = loaded(base)
    assert found.resized == Resized(257, 259)
    assert found.new == found.unused == ()
    theirs = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    before = theirs.get_input_embeddings().weight.detach().clone()
    theirs.resize_token_embeddings(259, mean_resizing=True)
    for ours, reference in (
        (found.model.get_input_embeddings(), theirs.get_input_embeddings()),
        (found.model.get_output_embeddings(), theirs.get_output_embeddings()),
    ):
        assert torch.equal(ours.weight[:257], reference.weight[:257]), "rows of the model stay as they were"
        scale = float(reference.weight[:257].std())
        torch.testing.assert_close(ours.weight[257:], reference.weight[257:], atol=3e-4 * scale, rtol=0)
        assert not torch.equal(ours.weight[257], ours.weight[258]), "no two tokens are the same"
    torch.testing.assert_close(found.model.get_input_embeddings().weight[257], before.mean(0), atol=1e-3, rtol=0)


def test_rows_depend_on_the_seed_and_their_name_alone(base: Path) -> None:
    first = loaded(base).model
    torch.manual_seed(99)
    before = torch.get_rng_state()
    again = loaded(base).model
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one, other) for one, other in zip(first.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    ("vocabulary", "section", "expected"),
    [
        (259, {"vocabulary_multiple": 64}, 320),
        (100, {}, 257),  # a tokenizer smaller than the embeddings leaves rows of no token
        (257, {"vocabulary_multiple": 64}, 320),
        (259, {"config": {"vocab_size": 300}, "vocabulary_multiple": 64}, 300),
        (100, {"config": {"vocab_size": 128}}, 128),
    ],
)
def test_the_embeddings_hold_the_tokenizer_and_are_padded(
    base: Path, vocabulary: int, section: dict[str, Any], expected: int
) -> None:
    found = loaded(base, vocabulary, **section)
    assert found.model.get_input_embeddings().weight.shape[0] == expected
    assert found.model.config.vocab_size == expected
    assert found.resized == (None if expected == 257 else Resized(257, expected))


def test_a_size_in_the_recipe_must_hold_the_tokenizer(base: Path) -> None:
    with pytest.raises(ModelError, match="vocab_size is 258, but the tokenizer has 259 entries"):
        loaded(base, config={"vocab_size": 258})


@pytest.mark.parametrize(
    ("family", "objective", "auto"),
    [("bert", "masked_lm", AutoModelForMaskedLM), ("bart", "seq2seq", AutoModelForSeq2SeqLM)],
)
def test_biases_and_shared_tables_get_rows_too(tmp_path: Path, family: str, objective: str, auto: Any) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sides = ("encoder_layers", "decoder_layers", "encoder_ffn_dim", "decoder_ffn_dim")
    heads = ("encoder_attention_heads", "decoder_attention_heads")
    config = {"d_model": 16, **dict.fromkeys(sides, 1), **dict.fromkeys(heads, 2)} if family == "bart" else sizes
    write_pretrained(tmp_path / "base", family, objective=objective, **config)
    model = Model(family=family, pretrained=str(tmp_path / "base"))
    config_ = architecture_config(model, vocabulary=260)
    built = construct_pretrained(model, config_, objective).model
    export_model(
        tmp_path / "out", config=config_, weights=built.state_dict(), tokenizer=None, card="", objective=objective
    )
    back = auto.from_pretrained(tmp_path / "out")
    ids = torch.tensor([[1, 2, 258, 259]])
    with torch.no_grad():
        logits = back(input_ids=ids).logits
        assert logits.shape[-1] == 260
        assert torch.equal(logits, built.eval()(input_ids=ids).logits)


def test_a_reference_model_is_resized_as_the_trained_one(base: Path) -> None:
    trained = loaded(base).model
    options = {"precision": "fp32", "device": torch.device("cpu")}
    reference = frozen_causal_lm(str(base), vocabulary=259, resize_seed=7, **options)  # type: ignore[arg-type]
    for one, other in zip(trained.parameters(), reference.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_family_that_cannot_be_resized_is_refused_by_name(base: Path) -> None:
    model = AutoModel.from_pretrained(base)

    def refuse(*_: Any, **__: Any) -> None:
        raise NotImplementedError("no such method")

    model.resize_token_embeddings = refuse
    with pytest.raises(ModelError, match=r"embeddings of this llama have 257 rows and 300 are needed.*at most 257"):
        resize(model, 300, seed=0)


def test_added_tokens_reach_the_tokenizer_the_plan_and_the_export(tmp_path: Path, base: Path) -> None:
    recipe = tiny_recipe(
        write_corpus(tmp_path),
        family="llama",
        model={"pretrained": str(base), "config": {}, "vocabulary_multiple": 32},
        added_tokens=ADDED,
    )
    plan = prepare(recipe, World(size=1, gpu=False))
    assert ("embeddings", "257 → 288 rows", "new rows begin as the mean of the others") in list(rows(plan))
    assert own_rows(recipe.model) == 257
    components = make_components(recipe)
    assert components.config.vocab_size == 288
    assert components.tokenizer.convert_tokens_to_ids(ADDED) == [257, 258]
    exported = components.exported_tokenizer(recipe)
    exported.save_pretrained(tmp_path / "tokenizer")
    back = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert back("a<|im_end|>", add_special_tokens=False)["input_ids"] == [97, 258]
    assert back.decode([97, 258], skip_special_tokens=True) == "a"
    # A tokenizer that has them already gets them once.
    assert len(load_tokenizer(str(tmp_path / "tokenizer"), ADDED)) == 259


def test_a_model_from_scratch_is_padded_too() -> None:
    model = Model(family="llama", config={"hidden_size": 16, "num_attention_heads": 2}, vocabulary_multiple=128)
    assert architecture_config(model, vocabulary=257).vocab_size == 384
    assert [padded(size, 64) for size in (1, 64, 65)] == [64, 64, 128]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"added_tokens": ["<a>", "<a>"]}, "has a token that is empty or there twice"),
        ({"added_tokens": [" "]}, "has a token that is empty or there twice"),
        (
            {"added_tokens": ["<a>"], "model": {"config": CONFIGS["gpt2"] | {"vocab_size": 257}}},
            "257 is less than the 258 entries",
        ),
    ],
)
def test_tokens_that_cannot_be_added_are_refused(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    (finding,) = check(tiny_recipe(write_corpus(tmp_path), **fields))
    assert said in finding[1]
