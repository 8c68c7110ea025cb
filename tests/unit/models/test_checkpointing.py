"""Activation checkpointing in every mode: the loss and gradients of a model that keeps everything, bit for bit."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy
from transformers import AutoConfig

from shardyard.models import checkpointing
from shardyard.models.build import construct, skeleton
from shardyard.models.size.kept import kept_of
from shardyard.recipe.schema import Model

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 64}
# On CPUs, dropout keeps its mask in the precision of the values, not as one byte each as on GPUs.
NO_DROPOUT = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attention_dropout": 0.0}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("causal_lm", {"n_embd": 32, "n_layer": 3, "n_head": 2, "vocab_size": 64}),
    "llama": ("causal_lm", SMALL | {"num_key_value_heads": 2, "attention_dropout": 0.1}),
    "mixtral": ("causal_lm", SMALL | {"num_key_value_heads": 2, "num_local_experts": 4, "attention_dropout": 0.1}),
    "bert": ("masked_lm", SMALL),
    "t5": (
        "seq2seq",
        {
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 64,
            "num_layers": 2,
            "num_heads": 4,
            "vocab_size": 64,
            "decoder_start_token_id": 0,
        },
    ),
    "vit": (
        "image_classification",
        {name: value for name, value in SMALL.items() if name != "vocab_size"}
        | {"image_size": 16, "patch_size": 4, "hidden_dropout_prob": 0.1},
    ),
}
MODES: dict[str, dict[str, Any]] = {
    "true": {"activation_checkpointing": True},
    "full": {"activation_checkpointing": "full"},
    "selective": {"activation_checkpointing": "selective"},
    "every other": {"activation_checkpointing": "full", "activation_checkpointing_interval": 2},
    "offloaded": {"activation_checkpointing": "full", "offload_activations": True},
}


def built(family: str, **settings: Any) -> Any:
    objective, config = FAMILIES[family]
    torch.manual_seed(1)
    fields = AutoConfig.for_model(family, **config)
    if family != "vit":
        fields.use_cache = False
    return construct(Model(family=family, **settings), fields, objective).train()


def inputs_of(family: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    if family == "vit":
        pixels = torch.rand(2, 3, 16, 16, generator=generator)
        return {"pixel_values": pixels, "labels": torch.tensor([0, 1])}
    ids = torch.randint(2, 64, (2, 16), generator=generator)
    return {"input_ids": ids, "labels": ids}


def trained(family: str, **settings: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and the gradients of two passes, with dropout."""
    model, inputs = built(family, **settings), inputs_of(family)
    torch.manual_seed(3)
    losses = []
    for _ in range(2):
        loss = model(**inputs).loss
        loss.backward()
        losses.append(loss.detach())
    return torch.stack(losses), {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


@pytest.fixture(scope="module")
def plain() -> dict[str, tuple[Tensor, dict[str, Tensor]]]:
    return {family: trained(family) for family in FAMILIES}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_no_mode_changes_a_bit(plain: dict[str, tuple[Tensor, dict[str, Tensor]]], family: str, mode: str) -> None:
    losses, gradients = trained(family, **MODES[mode])
    expected, theirs = plain[family]
    assert losses[0] != losses[1], "there is dropout"
    assert torch.equal(losses, expected)
    assert gradients.keys() == theirs.keys()
    assert all(torch.equal(one, theirs[name]) for name, one in gradients.items())


def kept_bytes(model: Any) -> int:
    """Bytes that live between forward and backward pass: those that autograd stores, and those that modes keep."""
    ids = torch.randint(2, 64, (1, 512), generator=torch.Generator().manual_seed(2))
    before = {one.untyped_storage().data_ptr() for one in _tensors()}
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(input_ids=ids)
    own = output.logits.untyped_storage().data_ptr()
    found |= {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in _tensors()}
    return sum(size for pointer, size in found.items() if pointer not in before and pointer != own)


def _tensors() -> Iterator[Tensor]:
    for one in gc.get_objects():
        if type(one) in (Tensor, torch.nn.Parameter) and one.device.type == "cpu":
            yield one


@pytest.mark.slow
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["gpt2", "llama", "mixtral"])
def test_the_plan_counts_what_each_mode_keeps(family: str, precision: torch.dtype) -> None:
    objective, config = FAMILIES[family]
    wide = {"n_embd": 128} if family == "gpt2" else {"hidden_size": 128}
    config = {**config, **NO_DROPOUT, **wide}
    fields = AutoConfig.for_model(family, **config, use_cache=False)
    pair = kept_of(skeleton(Model(family=family), fields, objective))
    assert pair is not None
    counted = pair[precision == torch.float32]
    for name, settings in {"none": {}, **MODES}.items():
        model = Model(family=family, config=config, **settings)
        measured = kept_bytes(construct(model, fields, objective).to(precision).train())
        expected = 512 * counted.between(model.checkpointing, model.activation_checkpointing_interval)
        assert expected == pytest.approx(measured, rel=0.1), name


def test_attention_with_dropout_is_computed_again() -> None:
    """An operation that is not computed again draws no random numbers, so that the next dropout would draw others."""
    attention = torch.ops.aten._scaled_dot_product_flash_attention.default
    tensor = torch.zeros(1, 1, 2, 4)
    keep, again = CheckpointPolicy.MUST_SAVE, CheckpointPolicy.PREFER_RECOMPUTE
    assert attention in checkpointing.kept_operations()
    policy = checkpointing._policy
    assert policy(None, attention, tensor, tensor, tensor) == keep
    assert policy(None, attention, tensor, tensor, tensor, 0.0, True) == keep
    assert policy(None, attention, tensor, tensor, tensor, 0.1, True) == again
    assert policy(None, attention, tensor, tensor, tensor, dropout_p=0.1) == again
    assert policy(None, torch.ops.aten.mm.default, tensor, tensor) == keep
    assert policy(None, torch.ops.aten.bmm.default, tensor, tensor) == again
