"""Activation functions in one operation: the same numbers, with less kept for the backward pass."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.activations import ACT2FN

from shardyard.models.build import architecture_config, construct, skeleton
from shardyard.models.fused import fuse_activations
from shardyard.recipe.schema import Model

SIZES: dict[str, dict[str, object]] = {
    "gpt2": {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 16},
    "gptj": {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 16, "rotary_dim": 8},
    "gpt_neo": {
        "num_layers": 2,
        "num_heads": 2,
        "hidden_size": 32,
        "max_position_embeddings": 16,
        "attention_types": [[["global", "local"], 1]],
    },
    "openai-gpt": {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 16},
    "phi": {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 64},
}


@pytest.mark.parametrize("name", ["gelu_new", "gelu_fast"])
def test_the_function_and_its_derivative_differ_by_rounding_only(name: str) -> None:
    plain = nn.Sequential(ACT2FN[name])
    fused = nn.Sequential(ACT2FN[name])
    fuse_activations(fused)
    assert type(fused[0]) is nn.GELU
    values = torch.linspace(-12, 12, 4801, dtype=torch.float64)
    found = []
    for module in (plain, fused):
        given = values.clone().requires_grad_()
        module(given).sum().backward()
        assert given.grad is not None
        found.append((module(values), given.grad))
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-9, atol=1e-12)
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("family", SIZES)
def test_a_model_computes_what_transformers_computes(family: str) -> None:
    model = Model.model_validate({"family": family, "config": SIZES[family], "dropout": 0.0})
    config = architecture_config(model, vocabulary=61)
    torch.manual_seed(3)
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    built = construct(model, config)
    assert not [one for one in built.modules() if type(one).__name__ == "NewGELUActivation"]
    assert built.state_dict().keys() == plain.state_dict().keys()
    built.load_state_dict(plain.state_dict())
    ids = torch.randint(61, (2, 16))
    losses = [one(input_ids=ids, labels=ids).loss for one in (plain, built)]
    assert torch.allclose(*losses, rtol=2e-7, atol=0)
    for loss in losses:
        loss.backward()
    for (name, one), other in zip(plain.named_parameters(), built.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.allclose(one.grad, other.grad, rtol=1e-4, atol=1e-6), name


def test_a_plan_counts_the_activations_of_the_fused_function() -> None:
    model = Model.model_validate({"family": "gpt2", "config": SIZES["gpt2"]})
    built = skeleton(model, architecture_config(model, vocabulary=61))
    assert sum(type(one) is nn.GELU for one in built.modules()) == 2


def test_every_family_that_names_the_function_still_has_it_as_a_module() -> None:
    assert type(ACT2FN["gelu_new"]).__name__ == "NewGELUActivation"
    assert CONFIG_MAPPING["gpt2"]().activation_function == "gelu_new"
