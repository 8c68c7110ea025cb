"""Attention without a mask beside the masks of transformers: the same logits and gradients, whatever the family."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from shardyard.errors import ModelError
from shardyard.models import document_attention
from shardyard.models.document_attention import attend
from shardyard.models.isolation import document_inputs
from shardyard.models.probes.documents import find_isolation

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
GROUPED = SIZES | {"num_key_value_heads": 2, "head_dim": 8}
WINDOWED = GROUPED | {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"]}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "attn_pdrop": 0.0, "resid_pdrop": 0.0},
    "llama": GROUPED,
    "qwen3": GROUPED,
    "mistral": GROUPED | {"sliding_window": 7},
    "gemma3_text": WINDOWED,
    "mixtral": GROUPED | {"num_local_experts": 4},
    "gpt_neox": SIZES,
}
# Two rows: documents of 11 and 21 tokens, and of 1, 20 and 11.
POSITIONS = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in ((11, 21), (1, 20, 11))])


def models(family: str, **more: Any) -> tuple[Any, Any]:
    """The same model with masks and without."""
    made = []
    for attention in ("sdpa", "varlen"):
        config = AutoConfig.for_model(family, **FAMILIES[family], **more, use_cache=False)
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).train()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.1)
        made.append(model)
    made[1].load_state_dict(made[0].state_dict())
    return made[0], made[1]


def ids_of(seed: int = 1) -> Tensor:
    return torch.randint(0, 64, (2, 32), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_are_those_of_the_mask(family: str) -> None:
    masked, documents = models(family, **({"embd_pdrop": 0.0} if family == "gpt2" else {}))
    logits = []
    for model in (masked, documents):
        found = model(input_ids=ids_of(), **document_inputs(model, POSITIONS)).logits
        (found**2).mean().backward()
        logits.append(found.detach())
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-5, atol=2e-6)
    for one, other in zip(documents.parameters(), masked.parameters(), strict=True):
        if other.grad is not None:
            torch.testing.assert_close(
                one.grad, other.grad, rtol=1e-4, atol=1e-6 * float(other.grad.abs().max()) + 1e-9
            )


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text"])
def test_rows_that_are_not_packed_have_their_masks(family: str) -> None:
    masked, documents = (model.eval() for model in models(family))
    padding = torch.ones(2, 32, dtype=torch.long)
    padding[0, :5] = 0
    with torch.no_grad():
        for given in ({}, {"attention_mask": padding}):
            theirs, ours = (model(input_ids=ids_of(), **given).logits for model in (masked, documents))
            torch.testing.assert_close(ours[:, 5:], theirs[:, 5:], rtol=1e-5, atol=2e-6)


def test_a_probe_finds_whether_a_family_hands_on_where_documents_begin() -> None:
    """OPT derives no mask from position ids, but hands the bounds on; BLOOM computes attention
    itself, so that its recipes are refused."""
    opt = {
        "hidden_size": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "word_embed_proj_dim": 32,
    }
    cases = [
        ("opt", "sdpa", opt),
        ("opt", "varlen", opt),
        ("bloom", "varlen", {"hidden_size": 32, "n_layer": 1, "n_head": 2}),
    ]
    found = []
    for family, attention, config in cases:
        fields = AutoConfig.for_model(family, **config, vocab_size=512)
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(fields, attn_implementation=attention).eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
        found.append(find_isolation([model], ("positions", "mask", "rows")).isolation)
    assert found == ["mask", "positions", None]


def test_on_a_gpu_in_16_bits_torchs_kernel_gets_the_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    def kernel(query: Tensor, key: Tensor, value: Tensor, *given: Any, **named: Any) -> Tensor:
        calls.append((query.shape, key.shape, *given, named))
        return torch.zeros(*query.shape[:-1], value.shape[-1])

    class OnGpu(Tensor):
        is_cuda = True

    monkeypatch.setattr(document_attention, "varlen_attn", kernel)
    query, key, value = (torch.zeros(2, heads, 8, 4, dtype=torch.bfloat16).as_subclass(OnGpu) for heads in (4, 2, 2))
    bounds = torch.tensor([0, 3, 8, 16], dtype=torch.int32)
    causal = nn.Module()
    options: dict[str, Any] = {"scaling": 0.5, "cu_seq_lens_q": bounds, "max_length_q": 8}
    for more in ({}, {"sliding_window": 3}, {"is_causal": False}):
        out, _ = attend(causal, query, key, value, None, **options, **more)
        assert out.shape == (2, 8, 4, 4)
    expected = {"scale": 0.5, "enable_gqa": True}
    assert [call[-1] for call in calls] == [
        expected | {"window_size": window} for window in ((-1, 0), (2, 0), (-1, -1))
    ]
    assert [tuple(shape) for shape in calls[0][:2]] == [(16, 4, 4), (16, 2, 4)]
    assert calls[0][2] is calls[0][3] is bounds
    assert calls[0][4:6] == (8, 8)


def test_what_no_kernel_computes_is_refused() -> None:
    tensor = torch.zeros(1, 1, 2, 4)
    with pytest.raises(ModelError, match="varlen does not compute this family's softcap"):
        attend(SimpleNamespace(), tensor, tensor, tensor, None, softcap=30.0)  # type: ignore[arg-type]
