"""Where documents of packed rows begin, said as FlashAttention takes it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from shardyard.objectives.isolation import document_bounds

POSITIONS = torch.tensor([[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]])


def model(attention: str | None) -> SimpleNamespace:
    return SimpleNamespace(config=SimpleNamespace(_attn_implementation=attention))


@pytest.mark.parametrize("attention", ["sdpa", "eager", None])
def test_masks_are_made_from_position_ids_elsewhere(attention: str | None) -> None:
    assert document_bounds(model(attention), POSITIONS) == {}
    assert document_bounds(object(), POSITIONS) == {}


@pytest.mark.parametrize("wrapped", [False, True])
def test_flash_attention_is_told_where_documents_begin_in_all_rows(wrapped: bool) -> None:
    flash = model("flash_attention_2")
    found = document_bounds(SimpleNamespace(module=flash) if wrapped else flash, POSITIONS)
    for name in ("cu_seq_lens_q", "cu_seq_lens_k"):
        assert found[name].tolist() == [0, 3, 5, 6, 10]
        assert found[name].dtype == torch.int32
    assert (found["max_length_q"], found["max_length_k"]) == (4, 4)


def test_rows_of_one_document_are_bounds_too() -> None:
    found = document_bounds(model("flash_attention_2"), torch.arange(4).expand(3, 4))
    assert found["cu_seq_lens_q"].tolist() == [0, 4, 8, 12]
    assert found["max_length_q"] == 4
