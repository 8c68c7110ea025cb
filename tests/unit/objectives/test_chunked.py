"""Logits computed for some tokens at a time: the same losses and gradients, and never all logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from shardyard.errors import ModelError
from shardyard.objectives import losses
from shardyard.objectives.chunked import ChunkedLogits, output_with_logits

VOCABULARY, ROWS, LENGTH = 509, 3, 17
HEADS = {"num_attention_heads": 2, "num_hidden_layers": 1}
LLAMA = {**HEADS, "hidden_size": 16, "intermediate_size": 32, "num_key_value_heads": 2, "head_dim": 8}
# Families that scale or cap their logits, whose layer has a bias, that tie it, or whose head has more than one layer.
FAMILIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "gpt2": (AutoModelForCausalLM, {"n_embd": 16, "n_layer": 1, "n_head": 2}),
    "llama": (AutoModelForCausalLM, LLAMA),
    "gemma2": (AutoModelForCausalLM, {**LLAMA, "final_logit_softcapping": 3.0}),
    "cohere": (AutoModelForCausalLM, LLAMA),
    "granite": (AutoModelForCausalLM, {**LLAMA, "logits_scaling": 7.3}),
    "phi": (AutoModelForCausalLM, {"hidden_size": 16, "intermediate_size": 32, **HEADS}),
    "bert": (AutoModelForMaskedLM, {"hidden_size": 16, "intermediate_size": 32, **HEADS}),
    "t5": (AutoModelForSeq2SeqLM, {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}),
}


def model_of(family: str) -> Any:
    auto, sizes = FAMILIES[family]
    torch.manual_seed(0)
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(family, vocab_size=VOCABULARY, **tokens, **sizes)
    return auto.from_config(config).double().eval()


def inputs_of(family: str) -> tuple[dict[str, Any], Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids, labels = torch.randint(5, VOCABULARY, (2, ROWS, LENGTH), generator=generator)
    labels[0, :5] = -100
    inputs: dict[str, Any] = {"input_ids": ids}
    if family != "bert":
        inputs["use_cache"] = False
    return inputs | ({"decoder_input_ids": labels.clamp(min=0)} if family == "t5" else {}), labels


LOSSES = {
    "cross_entropy": lambda logits, labels: losses.cross_entropy(logits, labels, label_smoothing=0.1),
    "weighted": lambda logits, labels: losses.cross_entropy(logits, labels, weights=(labels > 99) * 0.5),
    "focal": lambda logits, labels: losses.focal(logits, labels, gamma=2.0),
    "sequences": lambda logits, labels: losses.sequence_log_probability(logits, labels).square().sum(),
}


@pytest.mark.parametrize(
    ("family", "loss"), [*((family, "cross_entropy") for family in FAMILIES), *(("gemma2", name) for name in LOSSES)]
)
@pytest.mark.parametrize("size", [7, 1000])
def test_losses_and_gradients_are_those_of_all_logits(family: str, loss: str, size: int) -> None:
    model, (inputs, labels) = model_of(family), inputs_of(family)
    whole = LOSSES[loss](logits := output_with_logits(model, inputs, 0).logits, labels)
    whole.backward()
    expected = {name: weight.grad for name, weight in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    chunked = output_with_logits(model, inputs, size).logits
    assert isinstance(chunked, ChunkedLogits)
    assert chunked.shape == logits.shape
    result = LOSSES[loss](chunked, labels)
    assert result.item() == pytest.approx(whole.item(), rel=1e-12)
    result.backward()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, expected[name], rtol=1e-9, atol=1e-12, msg=name)
    assert torch.equal(chunked.argmax(), logits.argmax(-1))
    kept = labels != -100
    assert torch.equal(chunked[kept].argmax(), logits[kept].argmax(-1)), "without a loss"
    with torch.no_grad():
        evaluated = LOSSES[loss](output_with_logits(model, inputs, size).logits, labels)
    assert evaluated.item() == pytest.approx(whole.item(), rel=1e-12)


class _Largest(TorchDispatchMode):
    """The most numbers that a tensor had."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.numbers = max(self.numbers, result.numel())
        return result


@pytest.mark.parametrize(("size", "tokens"), [(0, ROWS * LENGTH), (7, 7)])
def test_no_tensor_holds_more_logits_than_asked_for(size: int, tokens: int) -> None:
    model, (inputs, labels) = model_of("llama"), inputs_of("llama")
    with _Largest() as largest:
        losses.cross_entropy(output_with_logits(model, inputs, size).logits, labels).backward()
    weights = 16 * VOCABULARY
    assert largest.numbers == max(tokens * VOCABULARY, weights)


def test_gradients_of_chunks_are_summed_in_fp32() -> None:
    """In bf16, adding 1 to 256 changes nothing."""
    layer = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    logits = ChunkedLogits(layer, torch.ones(1024, 1, dtype=torch.bfloat16), lambda part: part, 1)
    logits.map(lambda part: part.float().sum()).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.item() == 1024


def test_what_is_not_finite_is_in_the_loss_and_no_error() -> None:
    """As in the first steps of fp16, whose loss scale is lowered then."""
    model, (inputs, labels) = model_of("llama"), inputs_of("llama")
    with torch.no_grad():
        model.model.norm.weight[:] = torch.inf
    loss = losses.cross_entropy(output_with_logits(model, inputs, 7).logits, labels)
    loss.backward()
    assert not loss.isfinite()


class Bent(nn.Module):
    """A model that adds something to its logits."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self.layer, self.change = nn.Linear(4, VOCABULARY), change

    def get_output_embeddings(self) -> nn.Module:
        return self.layer

    def forward(self, hidden: Tensor) -> dict[str, Tensor]:
        return {"logits": self.change(self.layer(hidden))}


def _masked(logits: Tensor) -> Tensor:
    return logits.masked_fill(torch.arange(VOCABULARY) == 5, -1e9)


@pytest.mark.parametrize("change", [_masked, lambda logits: logits + 1, torch.relu, lambda logits: logits[..., 1:]])
def test_a_model_that_changes_logits_in_another_way_is_refused(change: Any) -> None:
    hidden = {"hidden": torch.ones(2, 4)}
    with pytest.raises(ModelError, match=r"set model\.logits_chunk to 0"):
        output_with_logits(Bent(change), hidden, 1)
    assert output_with_logits(Bent(functional.relu), hidden, 0)["logits"].shape == (2, VOCABULARY)


def test_a_model_that_multiplies_by_the_matrix_itself_gives_all_logits() -> None:
    class Own(Bent):
        def forward(self, hidden: Tensor) -> dict[str, Tensor]:
            return {"logits": functional.linear(hidden, self.layer.weight)}

    assert output_with_logits(Own(None), {"hidden": torch.ones(2, 4)}, 1)["logits"].shape == (2, VOCABULARY)
