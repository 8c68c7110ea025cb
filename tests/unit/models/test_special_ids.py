"""Ids of special tokens and dropout, where a family's configuration is stricter than the rest."""

from __future__ import annotations

import pytest

from shardyard.errors import ModelError
from shardyard.models.build import architecture_config
from shardyard.recipe.schema import Model

NONE = {"bos_token_id": None, "eos_token_id": 256, "pad_token_id": None}


@pytest.mark.parametrize("family", ["cwm", "emu3", "modernbert-decoder"])
def test_a_family_that_insists_on_an_id_gets_that_of_the_end(family: str) -> None:
    config = architecture_config(Model(family=family), vocabulary=257, special_tokens=NONE)
    assert config.get_text_config().bos_token_id == 256


def test_other_families_keep_none() -> None:
    config = architecture_config(Model(family="llama"), vocabulary=257, special_tokens=NONE)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (None, 256, None)


def test_a_probability_declared_as_a_whole_number_takes_zero_and_refuses_fractions() -> None:
    config = architecture_config(Model(family="mpt", dropout=0.0), vocabulary=257)
    assert config.attn_config.attn_pdrop == 0
    with pytest.raises(ModelError, match="mpt accepts only whole numbers for attn_pdrop"):
        architecture_config(Model(family="mpt", dropout=0.1), vocabulary=257)


def test_positions_begin_behind_the_padding_where_the_table_would_end_before_it() -> None:
    ids = {"bos_token_id": 256, "eos_token_id": 256, "pad_token_id": 257}
    small = Model(family="m2m_100", config={"max_position_embeddings": 64})
    assert architecture_config(small, vocabulary=258, special_tokens=ids).max_position_embeddings == 64 + 258
    assert (
        architecture_config(Model(family="m2m_100"), vocabulary=258, special_tokens=ids).max_position_embeddings == 1024
    )


def test_a_decoder_with_a_vision_part_of_another_kind_is_configured() -> None:
    assert architecture_config(Model(family="got_ocr2"), vocabulary=257, special_tokens=NONE).model_type == "got_ocr2"
