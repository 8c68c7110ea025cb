"""Narrow recipes of a dry run, and their made-up rows: of every kind of model that ships."""

from __future__ import annotations

import io
import json
import wave
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


def test_a_recogniser_has_as_many_letters_as_its_tokenizer(tmp_path: Path) -> None:
    recipe = narrow("speech/ctc-prompts-en", tmp_path)
    assert recipe.model.config["vocab_size"] == 4096
    assert recipe.data.train[0].path == str(tmp_path / "speech_ctc")


def test_pictures_are_made_up_as_files(tmp_path: Path) -> None:
    recipe = narrow("vision/vit-b16", tmp_path)
    assert recipe.data.sequence_length is None
    folder = Path(str(recipe.data.train[0].path))
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert len(rows) == made_up_data.FILES
    assert set(rows[0]) == {"label", "file_name"}
    with Image.open(folder / rows[0]["file_name"]) as picture:
        assert (picture.size, picture.mode) == ((64, 64), "RGB")


def test_sounds_are_made_up_as_files(tmp_path: Path) -> None:
    folder = Path(str(made_up_source("speech_to_text", tmp_path)["path"]))
    (first, *_) = sorted(folder.glob("*.wav"))
    with wave.open(io.BytesIO(first.read_bytes())) as file:
        assert (file.getframerate(), file.getnframes()) == (16_000, 32_000)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_rows_of_every_objective_are_made_up(objective: str, tmp_path: Path) -> None:
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


def test_unknown_columns_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(made_up_data._MADE, "label")  # as a kind that comes later
    with pytest.raises(UsageError, match="text_classification reads columns of label; try"):
        made_up_source("text_classification", tmp_path)
