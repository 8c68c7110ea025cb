"""The loss of packed rows is that of their documents alone, in families that isolate in different ways or are mixed.

Rows come from the loader and go through the objective, as in training; each document alone goes through the model as
transformers calls it. Models are narrow copies of the families' default configurations.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from shardyard.models.build import architecture_config
from shardyard.models.probes.narrow import narrow_model
from shardyard.models.probes.probe import probe_recipe
from shardyard.objectives.inputs import ObjectiveInputs
from shardyard.objectives.make import make_objective
from shardyard.planning.findings import with_findings
from shardyard.recipe.isolation import Isolation, isolation_of
from shardyard.recipe.schema import Recipe
from support.data_cases import batches, bytes_tokenizer, documents
from support.tiny import tiny_recipe

pytestmark = pytest.mark.slow

LENGTH = 48
IDS = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}
FAMILIES: dict[str, Isolation] = {
    "llama": "positions",
    "gpt2": "positions",
    "lfm2": "positions",
    "falcon": "mask",
    "gpt_oss": "mask",
    "opt": "mask",
    "mpt": "mask",
    "bert": "mask",
    "roberta": "mask",
    "bart": "rows",
    "bloom": "rows",
    "mamba": "rows",
    "qwen3_next": "rows",
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "texts.jsonl"
    path.write_text("".join(f'{{"text": "{text}"}}\n' for text in documents(40)), encoding="utf-8")
    return path


def recipe_and_model(family: str, corpus: Path) -> tuple[Recipe, Any]:
    recipe = tiny_recipe(
        corpus, model={"family": family, "config": {}, "dropout": None}, data={"sequence_length": LENGTH}
    )
    config = architecture_config(recipe.model, vocabulary=257, special_tokens=IDS)
    recipe = with_findings(recipe, probe_recipe(recipe, config))
    config = architecture_config(recipe.model, vocabulary=257, special_tokens=IDS)
    return recipe, narrow_model(config, vocabulary=257, row=LENGTH).model


def batch_of(recipe: Recipe) -> dict[str, Tensor]:
    batch = batches(recipe.data, 1, global_batch=4, streams=4)[0]
    return {name: batch[name] for name in ("input_ids", "labels", "position_ids")}


@torch.no_grad()
def loss_of_rows(model: Any, batch: dict[str, Tensor], isolation: Isolation) -> float:
    inputs = ObjectiveInputs(sequence_length=LENGTH, tokenizer=bytes_tokenizer(), isolation=isolation)
    return float(make_objective("causal_lm", inputs).measure(model, batch).losses["loss"])


@torch.no_grad()
def loss_of_documents(model: Any, batch: dict[str, Tensor]) -> float:
    """The sum of the losses of all documents, each alone in a row and called without position ids."""
    total = 0.0
    for ids, labels, positions in zip(*batch.values(), strict=True):
        starts = [*(positions == 0).nonzero().flatten().tolist(), len(ids)]
        for start, end in itertools.pairwise(starts):
            targets = labels[start:end]
            filled = int((targets != -100).sum())
            logits = model(input_ids=ids[None, start : start + filled], use_cache=False).logits[0]
            total += float(functional.cross_entropy(logits.float(), targets[:filled], reduction="sum"))
    return total


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_has_the_loss_of_its_documents(family: str, corpus: Path) -> None:
    recipe, model = recipe_and_model(family, corpus)
    isolation = isolation_of(recipe.data)
    assert isolation == FAMILIES[family]
    batch = batch_of(recipe)
    assert ((batch["position_ids"] == 0).sum() > len(batch["input_ids"])) == (isolation != "rows")
    expected = loss_of_documents(model, batch)
    assert loss_of_rows(model, batch, isolation) == pytest.approx(expected, rel=2e-5)
    if isolation == "mask":
        assert loss_of_rows(model, batch, "positions") != pytest.approx(expected, rel=1e-4), "the test sees a leak"
