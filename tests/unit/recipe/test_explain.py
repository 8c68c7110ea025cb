"""`explain_field` says meaning, unit, type, range and default of every field there is."""

from __future__ import annotations

import pytest

from shardyard.errors import UsageError
from shardyard.recipe.explain import explain_field, is_field
from shardyard.recipe.fields import all_paths
from shardyard.recipe.synonyms import SYNONYMS


def test_a_number_with_unit_and_range() -> None:
    explained = explain_field("train.global_batch")
    assert explained.meaning == "Rows per optimizer step, over all ranks."
    assert (explained.unit, explained.type, explained.range) == ("sequences", "whole number", "at least 1")
    assert explained.default == "none, must be given"
    assert "  unit: sequences\n" in str(explained)


def test_ranges_choices_and_defaults() -> None:
    assert explain_field("train.seed").range == "at least 0, less than 4294967296"
    assert explain_field("zero.stage").type == "one of 0, 1, 2, 3"
    assert explain_field("zero.stage").default == "1"
    assert explain_field("schedule.warmup").type == "steps or share of the run"
    assert explain_field("evaluate.every").type == "steps or share of the run or null"
    assert explain_field("evaluate.every").range == "whole number from 1 on, or a share above 0 and below 1"
    assert explain_field("model.dropout").type == "number or null"
    assert explain_field("model.dropout").default == "null"
    assert explain_field("optimizer.betas").default == "[0.9, 0.95]"
    assert explain_field("data.isolate_documents").default == "true"
    assert explain_field("model.config").type == "section with free keys"


@pytest.mark.parametrize("path", ["data.train.weight", "data.train.0.weight"])
def test_the_items_of_a_list_with_and_without_index(path: str) -> None:
    assert explain_field(path).meaning.startswith("Weight of this source")


def test_a_section_lists_its_fields() -> None:
    explained = explain_field("zero")
    assert dict(explained.fields)["nvme_path"].startswith("Folder on a local disk of every host, for offloading")
    assert "    stage  " in str(explained)
    assert [name for name, _ in explain_field("data.train").fields][:2] == ["source", "path"]


def test_a_field_of_several_types_lists_them() -> None:
    assert explain_field("data.packing").type == "one of concat, best_fit, true or false or null"


def test_every_field_can_be_explained() -> None:
    paths = list(all_paths())
    assert len(paths) > 90
    assert len(set(paths)) == len(paths)
    for path in paths:
        explained = explain_field(path)
        assert explained.meaning.endswith("."), path
        assert "any value" not in explained.type, path
        assert explained.default, path


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("learning_rate", "optimizer.lr"),
        ("batch_size", "train.global_batch"),
        ("per-device-train-batch-size", "train.micro_batch"),
        ("n_layer", "model.config.n_layer"),
        ("max_steps", "train.steps"),
        ("num_train_epochs", "train.epochs"),
        ("context_length", "data.sequence_length"),
        ("warmup_steps", "schedule.warmup"),
        ("optimizer.learning_rate", "optimizer.lr"),
        ("gpus", "cluster.workers"),
    ],
)
def test_names_of_other_tools_are_explained(name: str, path: str) -> None:
    explained = explain_field(name)
    assert explained.path == path
    assert str(explained).startswith(f"{name} is {path} here")
    assert explained.meaning == explain_field(path).meaning


def test_every_synonym_stands_for_a_field() -> None:
    assert len(SYNONYMS) > 250
    assert not {found.path for found in SYNONYMS.values() if not is_field(found.path)}
    # A field of this name is never hidden by a synonym.
    leaves = {path.rpartition(".")[2] for path in all_paths()} | set(all_paths())
    assert not {name for name, found in SYNONYMS.items() if name in leaves and found.path.rpartition(".")[2] != name}


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("train.gloal_batch", "did you mean 'global_batch'?"),
        ("trian.steps", "did you mean 'train'?"),
        ("warmup", "did you mean 'schedule.warmup'?"),
        ("lerning_rate", "did you mean 'optimizer.lr'?"),
        ("train.model", "it belongs at the top of the recipe, not below train; in a file, check its indentation."),
        ("quantum", "valid: name"),
        ("train.steps.x", "this field holds a value and has no keys"),
        ("", "valid: name"),
    ],
)
def test_an_unknown_field_names_the_nearest(path: str, hint: str) -> None:
    assert not is_field(path)
    with pytest.raises(UsageError) as caught:
        explain_field(path)
    assert hint in str(caught.value)
