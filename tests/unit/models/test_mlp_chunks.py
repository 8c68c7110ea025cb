"""Feed-forward blocks in parts: the same outputs and gradients, and no inner activation of all tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from shardyard.errors import ModelError
from shardyard.models.mlp_chunks import chunk_mlps

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 32,
    "pad_token_id": 0,
}


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "gpt_neox"])
def test_parts_give_what_the_whole_gives(family: str) -> None:
    model = made(family)
    ids = torch.arange(20).view(2, 10)
    plain = run(model, ids)
    widest: list[int] = []
    for name, module in model.named_modules():
        if name.endswith(".mlp"):
            next(module.children()).register_forward_hook(lambda _, given, __: widest.append(given[0].shape[1]))
    chunk_mlps(model, 6)
    logits, gradients = run(model, ids)
    assert set(widest) == {3, 1}, "6 tokens of two rows, and the rest of 10"
    torch.testing.assert_close(logits, plain[0])
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, plain[1][name], msg=lambda text, at=name: f"{at} {text}")
    widest.clear()
    with torch.no_grad():
        model(ids)
    assert set(widest) == {10}, "nothing is kept without gradients"


def test_experts_are_left_alone_and_a_model_without_such_blocks_is_refused() -> None:
    with pytest.raises(ModelError, match=r"no block `mlp` of all tokens; set model.mlp_chunk to 0"):
        chunk_mlps(made("mixtral"), 4)


def made(family: str) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES))
    return model.eval()


def run(model: nn.Module, ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    logits = model(ids).logits
    logits.square().sum().backward()
    gradients = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    return logits.detach(), gradients
