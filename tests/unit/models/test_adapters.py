"""Low-rank adapters, 4-bit weights, and their merging."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from shardyard.errors import ModelError
from shardyard.models.adapters import int8
from shardyard.models.adapters.adapters import attach, num_quantized, num_trainable
from shardyard.models.adapters.merging import merged
from shardyard.models.adapters.nf4 import BLOCK, LEVELS, dequantize, dequantize_by_kernel, quantize
from shardyard.models.adapters.quantized import FORMATS, Int8Linear, NF4Linear
from shardyard.models.adapters.targets import chosen
from shardyard.models.build import architecture_config, construct_pretrained, skeleton
from shardyard.models.frozen import AdapterOff, frozen_causal_lm
from shardyard.recipe.schema import Adapter, Model
from support.pretrained import write_pretrained

BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
OBJECTIVES = {"gpt2": "causal_lm", "llama": "causal_lm", "bert": "text_classification"}


def pretrained(folder: Path, family: str) -> tuple[Any, Any]:
    """A pretrained model, and its skeleton."""
    extra = BERT if family == "bert" else {}
    own = "masked_lm" if family == "bert" else "causal_lm"
    start = write_pretrained(folder / "start", family, objective=own, **extra)
    config = {"num_labels": 5} if family == "bert" else {}
    model = Model(family=family, pretrained=str(start), config=config, dropout=0.0)
    described = architecture_config(model, vocabulary=257)
    return construct_pretrained(model, described, OBJECTIVES[family], seed=1).model, skeleton(
        model, described, OBJECTIVES[family]
    )


def adapted(model: Any, adapter: Adapter, family: str, seed: int = 1) -> Any:
    attach(model, adapter, objective=OBJECTIVES[family], seed=seed)
    return model


def trained_a_little(model: nn.Module) -> None:
    """Adapters begin as nothing; give them values."""
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)


def tokens() -> torch.Tensor:
    return torch.randint(0, 257, (2, 16), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("quantize", [None, "nf4", "int8"])
@pytest.mark.parametrize("family", OBJECTIVES)
def test_only_adapters_and_new_heads_are_trained(family: str, quantize: Any, tmp_path: Path) -> None:
    model, plain = pretrained(tmp_path, family)
    adapter = Adapter(rank=4, quantize=quantize)
    expected = num_trainable(plain, adapter, OBJECTIVES[family])
    assert expected == num_trainable(model, adapter, OBJECTIVES[family])
    adapted(model, adapter, family)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert sum(dict(model.named_parameters())[name].numel() for name in names) == expected
    assert all(".lora_" in name or name.startswith("classifier.") for name in names)
    assert any(name.startswith("classifier.") for name in names) == (family == "bert")
    codes = [buffer.numel() for name, buffer in model.named_buffers() if name.endswith(".codes")]
    held = sum(codes) * (2 if quantize == "nf4" else 1)
    assert held == num_quantized(plain, adapter)
    assert (held > 0) == (quantize is not None)


@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_named_parts_are_trained_whole(quantize: Any, tmp_path: Path) -> None:
    model, plain = pretrained(tmp_path, "bert")
    adapter = Adapter(rank=4, quantize=quantize, modules_to_save=["bert.pooler.*", "*.LayerNorm.bias"])
    expected = num_trainable(plain, adapter, "text_classification")
    adapted(model, adapter, "bert")
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert sum(parameter.numel() for parameter in trained.values()) == expected
    whole = {name for name in trained if ".lora_" not in name and not name.startswith("classifier.")}
    assert {"bert.pooler.dense.weight", "bert.pooler.dense.bias"} < whole
    assert all(name.startswith("bert.pooler.") or name.endswith(".LayerNorm.bias") for name in whole)
    assert not [name for name in trained if "pooler" in name and ".lora_" in name]
    trained_a_little(model)
    fresh, _ = pretrained(tmp_path, "bert")
    fresh.load_state_dict(merged(model.state_dict(), adapter, plain))
    logits = [one.eval()(input_ids=tokens()).logits for one in (fresh, model)]
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)
    with pytest.raises(ModelError, match=r"model.adapter.modules_to_save: no parameter is called 'bert.poler.\*'"):
        num_trainable(plain, Adapter(modules_to_save=["bert.poler.*"]), "text_classification")


@pytest.mark.parametrize("family", OBJECTIVES)
def test_training_begins_with_the_pretrained_model(family: str, tmp_path: Path) -> None:
    model, _ = pretrained(tmp_path, family)
    before = model.eval()(input_ids=tokens()).logits
    assert torch.equal(adapted(model, Adapter(rank=4), family).eval()(input_ids=tokens()).logits, before)


def test_adapters_depend_on_seed_and_name_alone(tmp_path: Path) -> None:
    def first(seed: int, targets: list[str]) -> dict[str, torch.Tensor]:
        model, _ = pretrained(tmp_path, "llama")
        torch.rand(seed)
        adapted(model, Adapter(rank=4, targets=targets), "llama", seed)
        return {name: parameter for name, parameter in model.named_parameters() if ".lora_A." in name}

    one, other, fewer = first(1, []), first(2, []), first(1, ["v_proj"])
    assert len(one) == 14
    assert len(fewer) == 2
    assert all(torch.equal(one[name], tensor) for name, tensor in fewer.items())
    assert not any(torch.equal(one[name], other[name]) for name in one)
    assert len({float(tensor.detach().sum()) for tensor in one.values()}) == len(one)
    bound = 1 / 32**0.5
    down = one["model.layers.0.self_attn.q_proj.lora_A.default.weight"]
    assert down.abs().max() <= bound
    assert float(down.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.15)


def test_a_target_that_is_no_layer_names_the_nearest(tmp_path: Path) -> None:
    model, _ = pretrained(tmp_path, "llama")
    assert all(
        target.name.endswith(("q_proj", "v_proj")) for target in chosen(model, Adapter(targets=["q_proj", "v_proj"]))
    )
    with pytest.raises(ModelError, match=r"no linear layer is called 'q_prj'; did you mean 'q_proj'\?"):
        chosen(model, Adapter(targets=["q_prj"]))


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        *((family, {"quantize": kind}) for family in OBJECTIVES for kind in (None, "nf4", "int8")),
        ("gpt2", {"quantize": "nf4", "dora": True}),
        ("gpt2", {"quantize": "int8", "init": "pissa"}),
        ("llama", {"quantize": "nf4", "init": "pissa", "dora": True}),
    ],
)
def test_the_merged_model_computes_the_same(family: str, settings: Any, tmp_path: Path) -> None:
    model, plain = pretrained(tmp_path, family)
    adapter = Adapter(rank=4, alpha=6.0, **settings)
    adapted(model, adapter, family)
    trained_a_little(model)
    expected = model.eval()(input_ids=tokens()).logits
    weights = merged(model.state_dict(), adapter, plain)
    fresh, _ = pretrained(tmp_path, family)
    fresh.load_state_dict(weights)
    found = fresh.eval()(input_ids=tokens()).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    untrained, _ = pretrained(tmp_path, family)
    assert not torch.allclose(untrained.eval()(input_ids=tokens()).logits, expected, atol=1e-2)


def test_adapters_switched_off_are_the_pretrained_model(tmp_path: Path) -> None:
    model, _ = pretrained(tmp_path, "gpt2")
    before = model.eval()(input_ids=tokens()).logits
    adapted(model, Adapter(rank=4, dropout=0.5), "gpt2")
    trained_a_little(model)
    model.train()
    off = AdapterOff(model)(input_ids=tokens()).logits
    assert torch.equal(off, before)
    assert not off.requires_grad
    assert model.training
    assert not torch.allclose(model(input_ids=tokens()).logits, before, atol=1e-3)
    assert all(parameter.requires_grad for name, parameter in model.named_parameters() if ".lora_" in name)


def test_a_frozen_model_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    start = write_pretrained(tmp_path / "teacher", vocabulary=300)
    cpu = torch.device("cpu")
    with pytest.raises(ModelError, match="a vocabulary of 300 entries and the model that is trained one of 257"):
        frozen_causal_lm(str(start), vocabulary=257, precision="fp32", device=cpu)
    model = frozen_causal_lm(str(start), vocabulary=300, precision="bf16", device=cpu)
    assert {(parameter.dtype, parameter.requires_grad) for parameter in model.parameters()} == {(torch.bfloat16, False)}
    assert not model.training


def test_the_levels_are_the_papers() -> None:
    """Dettmers et al. 2023, appendix E: quantiles of the normal distribution, eight of its upper half and seven of its
    lower, with a zero, scaled to [-1, 1]."""
    offset = 0.9677083  # 1/2·(1 - 1/30 + 1 - 1/32)
    upper = torch.special.ndtri(torch.linspace(offset, 0.5, 9, dtype=torch.float64)[:-1])
    lower = -torch.special.ndtri(torch.linspace(offset, 0.5, 8, dtype=torch.float64)[:-1])
    levels = torch.cat([lower, torch.zeros(1, dtype=torch.float64), upper]).sort().values
    torch.testing.assert_close(torch.tensor(LEVELS, dtype=torch.float64), levels / levels.max(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(64, 64), (3, 7), (5, 130)])
def test_a_weight_becomes_the_nearest_level_of_its_block(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape)
    codes, scales = quantize(weight)
    blocks = -(-weight.numel() // BLOCK)
    assert (codes.numel(), scales.numel()) == (blocks * BLOCK // 2, blocks * 4)
    found = dequantize(codes, scales, weight.shape).flatten()
    levels = torch.tensor(LEVELS)
    for start in range(0, weight.numel(), BLOCK):
        block = weight.flatten()[start : start + BLOCK]
        choices = levels * block.abs().max()
        nearest = choices[(block[:, None] - choices).abs().argmin(1)]
        assert torch.equal(found[start : start + BLOCK], nearest)


def test_a_block_of_zeros_stays_zero() -> None:
    assert torch.equal(dequantize(*quantize(torch.zeros(64, 2)), torch.Size((64, 2))), torch.zeros(64, 2))


@pytest.mark.parametrize("shape", [(64, 64), (3, 7), (5, 130)])
def test_codes_scales_and_weights_are_those_of_bitsandbytes(shape: tuple[int, int]) -> None:
    """Its kernels also run on CPUs."""
    import bitsandbytes.functional as theirs  # Takes a second, which only this test needs.

    torch.manual_seed(0)
    weight = torch.randn(shape)
    codes, scales = quantize(weight)
    packed, state = theirs.quantize_4bit(weight, quant_type="nf4", compress_statistics=False)
    assert torch.equal(state.absmax, scales.view(torch.float32))
    assert torch.equal(packed.flatten(), codes[: packed.numel()])
    assert torch.equal(dequantize_by_kernel(codes, scales, weight.shape), dequantize(codes, scales, weight.shape))
    rows, largest, _ = theirs.int8_vectorwise_quant(weight)
    codes, scales = int8.quantize(weight)
    assert torch.equal(codes, rows)
    assert torch.equal(scales.view(torch.float32), largest)


def test_a_weight_in_8_bits_is_off_by_half_a_level_of_its_row() -> None:
    torch.manual_seed(0)
    weight = torch.randn(9, 70)
    weight[4] = 0
    found = int8.dequantize(*int8.quantize(weight), weight.shape)
    level = weight.abs().amax(1, keepdim=True) / 127
    assert ((found - weight).abs() <= level / 2 * (1 + 1e-5)).all()
    assert torch.equal(found[4], weight[4])


@pytest.mark.parametrize("kind", FORMATS)
def test_a_change_of_precision_leaves_the_levels_as_they_were(kind: str) -> None:
    torch.manual_seed(0)
    layer = FORMATS[kind](torch.randn(16, 32), nn.Parameter(torch.zeros(16)))
    before = layer.weight
    assert torch.equal(layer.bfloat16().weight, before)
    assert layer(torch.randn(2, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("quantized", [NF4Linear, Int8Linear])
def test_a_quantised_layer_computes_as_one_with_its_weight(quantized: Any) -> None:
    torch.manual_seed(0)
    layer = quantized(torch.randn(16, 32), nn.Parameter(torch.randn(16)))
    ours, theirs = (torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in "ab")
    output, expected = layer(ours), functional.linear(theirs, layer.weight, layer.bias)
    torch.testing.assert_close(output, expected)
    output.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert [name for name, _ in layer.named_parameters()] == ["bias"]
