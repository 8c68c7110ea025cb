"""What a model is given so that the documents of a row do not see each other."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertLMHeadModel, LlamaConfig, LlamaForCausalLM, RobertaConfig, RobertaForCausalLM

from shardyard.models.isolation import document_inputs, document_mask

POSITIONS = torch.tensor([[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]])


def model(attention: str | None) -> SimpleNamespace:
    return SimpleNamespace(config=SimpleNamespace(_attn_implementation=attention))


@pytest.mark.parametrize("attention", ["sdpa", "eager", None])
def test_masks_are_made_from_position_ids_elsewhere(attention: str | None) -> None:
    for one in (model(attention), object()):
        found = document_inputs(one, POSITIONS)
        assert found.keys() == {"position_ids"}
        assert found["position_ids"] is POSITIONS


@pytest.mark.parametrize("wrapped", [False, True])
def test_flash_attention_is_told_where_documents_begin_in_all_rows(wrapped: bool) -> None:
    flash = model("flash_attention_2")
    found = document_inputs(SimpleNamespace(module=flash) if wrapped else flash, POSITIONS)
    for name in ("cu_seq_lens_q", "cu_seq_lens_k"):
        assert found[name].tolist() == [0, 3, 5, 6, 10]
        assert found[name].dtype == torch.int32
    assert (found["max_length_q"], found["max_length_k"]) == (4, 4)


def test_rows_of_one_document_are_bounds_too() -> None:
    found = document_inputs(model("flash_attention_2"), torch.arange(4).expand(3, 4), "rows")
    assert found["cu_seq_lens_q"].tolist() == [0, 4, 8, 12]
    assert found["max_length_q"] == 4


def test_a_token_sees_its_own_document_up_to_itself() -> None:
    mask = document_mask(POSITIONS, torch.float32)
    assert mask.shape == (2, 1, 5, 5)
    assert (mask[0, 0] == 0).int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]
    assert mask.min() == torch.finfo(torch.float32).min


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mask_has_the_number_format_of_the_model(dtype: torch.dtype) -> None:
    mask = document_inputs(nn.Linear(2, 2, dtype=dtype), POSITIONS, "mask")["attention_mask"]
    assert isinstance(mask, torch.Tensor)
    assert mask.dtype == dtype
    assert torch.isfinite(mask).all()


@pytest.mark.parametrize(("config", "kind"), [(RobertaConfig, RobertaForCausalLM), (BertConfig, BertLMHeadModel)])
def test_positions_begin_where_a_family_begins_them(config: type, kind: type) -> None:
    """RoBERTa counts positions from the one after padding: without ids of ours, it derives the same."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    made = kind(config(**sizes, vocab_size=32, is_decoder=True)).eval()
    ids = torch.arange(5, 13)[None]
    with torch.no_grad():
        expected = made(ids).logits
        found = made(ids, **document_inputs(made, torch.arange(8)[None])).logits
    torch.testing.assert_close(found, expected)


def test_positions_of_others_begin_at_zero() -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    made = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=32, pad_token_id=3))
    assert document_inputs(made, POSITIONS)["position_ids"] is POSITIONS
