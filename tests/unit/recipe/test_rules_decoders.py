"""Recipes of encoder–decoders whose fields do not go together."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from shardyard.recipe.loading.load import load_recipe, parse_recipe
from shardyard.recipe.rules.decoders import decoder_rules
from shardyard.recipe.schema import EarlyStopping, Recipe
from support.objectives import seq2seq
from support.tiny import tiny_recipe, write_corpus


def recipe(tmp_path: Path, objective: str, config: dict[str, Any] | None = None, **sections: Any) -> Recipe:
    case = importlib.import_module(f"support.objectives.{objective}")
    fields = case.recipe_fields(case.write_data(tmp_path))
    valid = parse_recipe(fields)
    assert not list(decoder_rules(valid))
    model = valid.model.model_copy(update={"config": {**valid.model.config, **(config or {})}})
    update = {name: getattr(valid, name).model_copy(update=fields) for name, fields in sections.items()}
    return valid.model_copy(update={"model": model, **update})


def findings(found: Recipe) -> dict[str, str]:
    return {".".join(map(str, path)): message for path, message in decoder_rules(found)}


def test_decoded_metrics_need_decoded_rows(tmp_path: Path) -> None:
    found = findings(recipe(tmp_path, "seq2seq", evaluate={"generate_rows": 0, "beams": 4}))
    assert found.keys() == {"evaluate.beams"}


@pytest.mark.parametrize(("metric", "refused"), [("chrf", True), ("perplexity", False), ("loss", False)])
def test_stopping_early_by_a_decoded_metric_needs_decoded_rows(tmp_path: Path, metric: str, refused: bool) -> None:
    early = {"metric": f"eval/validation/{metric}", "patience": 2}
    made = seq2seq.recipe_fields(seq2seq.write_data(tmp_path))
    made["evaluate"] = {"every": 4, "rows": 8, "early_stopping": early}
    assert bool(findings(parse_recipe(made))) is refused
    made["evaluate"]["generate_rows"] = 4
    assert not findings(parse_recipe(made))


def test_lengths_that_the_positions_do_not_hold(tmp_path: Path) -> None:
    found = findings(recipe(tmp_path, "seq2seq", data={"source_length": 60}))
    assert found.keys() == {"data.source_length"}
    assert "max_position_embeddings to 60" in found["data.source_length"]
    found = findings(recipe(tmp_path, "speech_to_text", data={"sequence_length": 20}))
    assert found.keys() == {"data.sequence_length"}
    assert "max_target_positions to 20" in found["data.sequence_length"]


def test_sound_is_whole_seconds_and_masked_repeatably(tmp_path: Path) -> None:
    found = findings(recipe(tmp_path, "speech_to_text", {"max_source_positions": 120}))
    assert found.keys() == {"model.config.max_source_positions"}
    assert "set 100" in found["model.config.max_source_positions"]
    found = findings(recipe(tmp_path, "speech_to_text", {"apply_spec_augment": True}))
    assert found.keys() == {"model.config.apply_spec_augment"}


def test_other_objectives_decode_nothing_and_have_no_source(tmp_path: Path) -> None:
    valid = tiny_recipe(write_corpus(tmp_path, 20))
    evaluate = valid.evaluate.model_copy(update={"generate_rows": 4, "beams": 2})
    data = valid.data.model_copy(update={"drop_inputs": True, "source_length": 8})
    found = findings(valid.model_copy(update={"evaluate": evaluate, "data": data}))
    assert found.keys() == {"evaluate.generate_rows", "evaluate.beams", "data.drop_inputs", "data.source_length"}


@pytest.mark.parametrize("name", ["multimodal/llava-emoji", "speech/prompts-en", "speech/ctc-prompts-en"])
def test_a_question_without_its_image_or_a_recording_without_its_sound_is_a_baseline(name: str) -> None:
    assert load_recipe(name, ["data.drop_inputs=true"]).recipe.data.drop_inputs


def test_rouge_needs_decoded_rows_of_text(tmp_path: Path) -> None:
    found = findings(recipe(tmp_path, "seq2seq", evaluate={"generate_rows": 0, "beams": 1, "rouge": "plain"}))
    assert found == {"evaluate.rouge": "does nothing where no rows are decoded; set evaluate.generate_rows"}
    found = findings(recipe(tmp_path, "speech_to_text", evaluate={"rouge": "plain"}))
    assert found == {"evaluate.rouge": "does nothing for speech_to_text, only for seq2seq; remove it"}
    early = EarlyStopping(metric="eval/validation/rouge_l", patience=2)
    found = findings(recipe(tmp_path, "seq2seq", evaluate={"early_stopping": early}))
    assert found == {"evaluate.early_stopping.metric": "rouge_l is not measured; set evaluate.rouge"}
