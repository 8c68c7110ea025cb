"""Embeddings of texts: rows, pooling, losses against their formulas, ranks of held-out texts, and what is exported."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel, BertConfig

from shardyard.data.formats import FormatInputs, make_rows
from shardyard.data.formats.sentence_modules import SentenceModules
from shardyard.errors import DataError
from shardyard.models.build import architecture_config, construct
from shardyard.objectives.embedding.loss import Embedding, embed, pooled
from shardyard.objectives.embedding.rows import EmbeddingRows
from shardyard.objectives.losses import in_batch_margin
from shardyard.objectives.ranking import mean_reciprocal_rank, ndcg, ranks, recall
from shardyard.objectives.registry import objective_spec
from shardyard.recipe.families import families_with
from shardyard.recipe.schema import Data, Model, Source
from shardyard.recipe.schema import Embedding as Settings
from support.objectives.masked_lm import MODEL
from support.wordpieces import tiny_wordpiece


def inputs(length: int = 16, config: Any = None, **settings: Any) -> FormatInputs:
    recipe = Data(sequence_length=length, train=[Source(path="unread")])
    return FormatInputs(recipe, tiny_wordpiece(), config or BertConfig(hidden_size=32), embedding=Settings(**settings))


def rows_format(length: int = 16, config: Any = None, **settings: Any) -> EmbeddingRows:
    made = make_rows("embedding", inputs(length, config, **settings))
    assert isinstance(made, EmbeddingRows)
    return made


def batch_of(made: EmbeddingRows, *examples: tuple[str, ...]) -> dict[str, Tensor]:
    generator = np.random.default_rng(0)
    pieces = [dict(zip(("query", "positive", "negative"), texts, strict=False)) for texts in examples]
    return made.collate([made.row(piece, generator) for piece in pieces])


PAIRS = (("the model", "a batch of weight"), ("loss", "the loss step"), ("each rank reads", "seed"))
TRIPLES = tuple((*pair, "stage row token") for pair in PAIRS)


def model(family: str = "bert") -> Any:
    torch.manual_seed(3)
    section = Model(family=family, config={**MODEL, "pad_token_id": 0}, dropout=0.0)
    return construct(section, architecture_config(section, vocabulary=97), "embedding").train()


@pytest.mark.parametrize("length", [5, 16])
def test_each_side_is_what_the_tokenizer_makes_of_its_prompt_and_text(length: int) -> None:
    tokenizer = tiny_wordpiece()
    batch = batch_of(rows_format(length, query_prompt="the: ", document_prompt="a "), *TRIPLES)
    for side, prompt, texts in zip(
        ("query", "positive", "negative"), ("the: ", "a ", "a "), zip(*TRIPLES, strict=True), strict=True
    ):
        expected = tokenizer(
            [prompt + text for text in texts], truncation=True, max_length=length, padding=True, return_tensors="pt"
        )
        assert torch.equal(batch[f"{side}_input_ids"], expected.input_ids)
        assert torch.equal(batch[f"{side}_attention_mask"], expected.attention_mask)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2"])
def test_vectors_are_those_of_each_text_alone(family: str, pooling: str) -> None:
    trained = model(family)
    made = rows_format(config=trained.config)
    sides = embed(trained, batch_of(made, *PAIRS), pooling)
    for side, texts in zip(sides, zip(*PAIRS, strict=True), strict=True):
        for vector, text in zip(side, texts, strict=True):
            ids = tiny_wordpiece()(text, return_tensors="pt").input_ids
            states = trained(input_ids=ids).last_hidden_state[0]
            expected = {"mean": states.mean(0), "cls": states[0], "last": states[-1]}[pooling]
            torch.testing.assert_close(vector, functional.normalize(expected, dim=-1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("examples", [PAIRS, TRIPLES])
def test_info_nce_is_the_cross_entropy_of_the_cosines(examples: Any, symmetric: bool) -> None:
    batch, trained = batch_of(rows_format(), *examples), model()
    objective = Embedding(Settings(temperature=0.1, symmetric=symmetric))
    query, *others = embed(trained, batch, "mean")
    expected = functional.cross_entropy(query @ torch.cat(others).T / 0.1, torch.arange(3))
    if symmetric:
        expected = (expected + functional.cross_entropy(others[0] @ query.T / 0.1, torch.arange(3))) / 2
    found = objective.measure(trained, batch).losses["loss"] / objective.counts(batch)["loss"]
    torch.testing.assert_close(found, expected)


def test_triplet_and_margin() -> None:
    batch, trained = batch_of(rows_format(), *TRIPLES), model()
    query, positive, negative = (side.detach() for side in embed(trained, batch, "mean"))
    found = Embedding(Settings(loss="triplet", margin=0.7)).measure(trained, batch).losses["loss"]
    expected = functional.triplet_margin_loss(query, positive, negative, margin=0.7, reduction="sum")
    torch.testing.assert_close(found.detach(), expected)
    found = Embedding(Settings(loss="margin", margin=0.3)).measure(trained, batch).losses["loss"]
    products = query @ torch.cat([positive, negative]).T
    violations = [
        max(0.0, 0.3 - float(products[at, at]) + float(products[at, other]))
        for at in range(3)
        for other in range(6)
        if other != at
    ]
    assert float(found.detach()) == pytest.approx(sum(violations) / 5, rel=1e-5)


def test_parts_of_a_margin_add_up_to_the_whole() -> None:
    vectors = functional.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(1)), dim=-1)
    queries, keys = vectors[:3], vectors
    whole = in_batch_margin(queries, keys, margin=0.4)
    parts = [in_batch_margin(queries[at : at + 1], keys, margin=0.4, first_target=at) for at in range(3)]
    torch.testing.assert_close(whole, torch.stack(parts).sum())
    assert float(in_batch_margin(queries[:1], keys[:1], margin=0.4)) == 0.0


@torch.no_grad()
def test_an_evaluation_ranks_each_positive_among_all_texts() -> None:
    trained = model().eval()
    objective, made = Embedding(Settings()), rows_format()
    whole = objective.collect(trained, batch_of(made, *TRIPLES), synchronised=False)
    assert objective.measure(trained, batch_of(made, *TRIPLES)).losses["loss"] == 0
    parts = [objective.collect(trained, batch_of(made, one), synchronised=False)[0] for one in TRIPLES]
    scores = objective.score(whole)
    assert objective.score(parts) == pytest.approx(scores, rel=1e-4)
    query, *others = (torch.from_numpy(np.stack([row[side] for row in whole])) for side in range(3))
    similarity = query @ torch.cat(others).T
    places = [int((similarity[at] >= similarity[at, at]).sum()) for at in range(3)]
    assert scores["recall_at_1"] == pytest.approx(np.mean([place <= 1 for place in places]))
    assert scores["mrr"] == pytest.approx(np.mean([1 / place for place in places]))
    assert scores["ndcg_at_10"] == pytest.approx(np.mean([1 / math.log2(1 + place) for place in places]))
    assert scores.keys() - {"loss"} == objective_spec("embedding").metrics.keys()


@torch.no_grad()
def test_equal_texts_are_both_right() -> None:
    trained, objective = model().eval(), Embedding(Settings())
    batch = batch_of(rows_format(), ("the model", "a batch"), ("the model", "a batch"))
    assert objective.score(objective.collect(trained, batch, synchronised=False))["recall_at_1"] == 1.0


def test_ranks() -> None:
    similarity = torch.tensor([[0.9, 0.5, 0.1], [0.5, 0.5, 0.5], [math.nan] * 3, [0.1, 0.2, 0.3]])
    right = torch.tensor([[True, False, False], [False, True, False], [True, False, False], [True, True, False]])
    found = ranks(similarity, right)
    assert found.tolist() == [1, 3, 3, 2]
    assert recall(found, 1) == 0.25
    assert mean_reciprocal_rank(found) == pytest.approx((1 + 1 / 3 + 1 / 3 + 1 / 2) / 4)
    assert ndcg(found, 2) == pytest.approx((1 + 1 / math.log2(3)) / 4)


def test_rows_that_will_not_do() -> None:
    with pytest.raises(DataError, match=r"triplet compares with a negative, and the data has no such column"):
        batch_of(rows_format(loss="triplet"), PAIRS[0])
    with pytest.raises(DataError, match=r"some sources have a column `negative` and others do not"):
        batch_of(rows_format(), PAIRS[0], TRIPLES[0])


def test_families_are_those_that_read_text() -> None:
    families = families_with(objective_spec("embedding"))
    assert {"bert", "roberta", "modernbert", "qwen3", "mistral", "t5"} <= families
    assert not {"vit", "clip", "wav2vec2", "resnet"} & families


def test_a_folder_has_the_layout_of_sentence_transformers(tmp_path: Path) -> None:
    trained = model()
    trained.save_pretrained(tmp_path)
    SentenceModules.for_model(inputs(pooling="last", query_prompt="q: ")).save_pretrained(tmp_path)
    assert type(AutoModel.from_pretrained(tmp_path)) is type(trained)
    modules = json.loads((tmp_path / "modules.json").read_text())
    assert [module["type"].rpartition(".")[2] for module in modules] == ["Transformer", "Pooling", "Normalize"]
    assert all((tmp_path / module["path"]).is_dir() for module in modules)
    pooling = json.loads((tmp_path / "1_Pooling" / "config.json").read_text())
    assert pooling["word_embedding_dimension"] == 32
    assert [name for name, value in pooling.items() if value is True] == ["include_prompt", "pooling_mode_lasttoken"]
    assert json.loads((tmp_path / "config_sentence_transformers.json").read_text())["prompts"]["query"] == "q: "
    assert json.loads((tmp_path / "sentence_bert_config.json").read_text())["max_seq_length"] == 16


def test_pooling_leaves_padding_out() -> None:
    states = torch.arange(12.0).reshape(2, 3, 2)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert pooled(states, mask, "mean").tolist() == [[1.0, 2.0], [8.0, 9.0]]
    assert pooled(states, mask, "last").tolist() == [[2.0, 3.0], [10.0, 11.0]]
