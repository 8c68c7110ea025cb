"""Narrow recipes of a dry run, and their made-up rows: of every kind of model that ships."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from transformers import AutoConfig

from shardyard.errors import UsageError
from shardyard.launch.dry_run import made_up_data
from shardyard.launch.dry_run.made_up_data import made_up_source
from shardyard.launch.dry_run.narrow_recipe import narrow_recipe
from shardyard.objectives.registry import OBJECTIVES, objective_spec
from shardyard.recipe.loading.load import load_recipe
from shardyard.recipe.schema import Recipe


def narrow(name: str, folder: Path) -> Recipe:
    return narrow_recipe(load_recipe(name).recipe, 4, folder, folder).recipe


def test_an_encoder_decoder_begins_with_padding_where_its_hub_would_say_so(tmp_path: Path) -> None:
    recipe = narrow("seq2seq/t5-base", tmp_path)
    config = AutoConfig.from_pretrained(str(recipe.model.pretrained))
    assert (config.decoder_start_token_id, config.pad_token_id) == (0, 0)
    assert (config.num_layers, config.num_decoder_layers, config.vocab_size) == (3, 3, 4096)


def test_tokens_outside_of_a_vocabulary_become_its_last_one(tmp_path: Path) -> None:
    """Marian's default padding is token 58,100, and the recipe has 37,000 of them."""
    recipe = narrow("seq2seq/transformer-base", tmp_path)
    assert recipe.model.config["vocab_size"] == 4096
    assert (recipe.data.sequence_length, recipe.zero.stage) == (64, 1)


def test_pictures_are_made_up_as_files(tmp_path: Path) -> None:
    recipe = narrow("vision/vit-b16", tmp_path)
    assert recipe.data.sequence_length is None
    folder = Path(str(recipe.data.train[0].path))
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert len(rows) == made_up_data.PICTURES
    assert set(rows[0]) == {"label", "file_name"}
    with Image.open(folder / rows[0]["file_name"]) as picture:
        assert (picture.size, picture.mode) == ((64, 64), "RGB")


REFUSED = (
    "audio_classification",
    "audio_contrastive",
    "contrastive",
    "speech_ctc",
    "speech_to_text",
    "vision_language",
)


@pytest.mark.parametrize("objective", sorted(set(OBJECTIVES) - set(REFUSED)))
def test_rows_of_objectives_are_made_up(objective: str, tmp_path: Path) -> None:
    """Texts are longer than rows, so that all rows are full, and what a plan counts of one holds for all."""
    path = Path(str(made_up_source(objective, tmp_path)["path"]))
    file = path / "metadata.jsonl" if path.is_dir() else path
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    columns = objective_spec(objective).columns
    for name, kind in columns.items():
        if kind == "text":
            fewest = min(len(row[name].split()) for row in rows)
            assert fewest == 2 if name == "prompt" else fewest > 64
        if kind == "answers":
            context = rows[0][next(one for one in columns if one == "context")]
            assert context[rows[0][name]["answer_start"][0] :].startswith(rows[0][name]["text"][0])
    # The same for the same objective.
    before = file.read_bytes()
    made_up_source(objective, tmp_path)
    assert file.read_bytes() == before


@pytest.mark.parametrize("objective", REFUSED)
def test_sounds_and_pictures_with_texts_are_refused(objective: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{objective} reads columns of .*--try 4"):
        made_up_source(objective, tmp_path)
    assert not list(tmp_path.iterdir())


def test_dropout_stays_but_for_attention(tmp_path: Path) -> None:
    recipe = narrow("bert/large", tmp_path)
    assert recipe.model.dropout is None
    assert recipe.model.config["attention_probs_dropout_prob"] == 0.0
    assert recipe.model.config.get("hidden_dropout_prob", 0.1) == 0.1
