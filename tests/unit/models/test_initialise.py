"""Initial weights: a function of seed and name, with the statistics of the family's own initialisation."""

from __future__ import annotations

import contextlib
import random
import re
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from shardyard.models.build import architecture_config, construct
from shardyard.models.initialise import initialise, on_host
from shardyard.recipe.schema import Model
from support.tiny import CONFIGS

# Large enough for a standard deviation to be known within a few percent.
WIDER: dict[str, dict[str, Any]] = {
    "gpt2": {"n_layer": 3, "n_head": 2, "n_embd": 64, "n_positions": 64},
    "llama": CONFIGS["llama"] | {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3},
    "mixtral": CONFIGS["mixtral"] | {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3},
}


def constructed(family: str, config: dict[str, Any]) -> PreTrainedModel:
    model = Model(family=family, config=config)
    return construct(model, architecture_config(model, vocabulary=257))


def initialised(family: str, *, seed: int = 1, config: dict[str, Any] | None = None) -> PreTrainedModel:
    model = constructed(family, config or CONFIGS[family])
    initialise(model, seed=seed, gathered=lambda _: contextlib.nullcontext())
    return model


def weights(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    assert ours.keys() == theirs.keys()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.parametrize("family", CONFIGS)
def test_the_global_random_state_does_not_matter(family: str) -> None:
    torch.manual_seed(1)
    first = weights(initialised(family))
    torch.manual_seed(2)
    torch.rand(1000)
    assert equal(first, weights(initialised(family)))


@pytest.mark.parametrize("family", CONFIGS)
def test_the_order_in_which_modules_lie_does_not_matter(family: str) -> None:
    straight = weights(initialised(family))
    model = constructed(family, CONFIGS[family])
    for module in list(model.modules()):
        # GPT-2's head is tied to its embedding: of the two names the later one counts, so those keep their order.
        if module is not model and not isinstance(module, nn.ModuleList):
            module._modules = dict(reversed(list(module._modules.items())))
    initialise(model, seed=1, gathered=lambda _: contextlib.nullcontext())
    assert equal(straight, weights(model))


@pytest.mark.parametrize("family", CONFIGS)
def test_a_module_is_initialised_by_its_name_and_not_by_its_neighbours(family: str) -> None:
    """A third block changes nothing in the first two, but for GPT-2's scaling by depth."""
    layers = "n_layer" if family == "gpt2" else "num_hidden_layers"
    two, three = weights(initialised(family)), weights(initialised(family, config=CONFIGS[family] | {layers: 3}))
    for name, tensor in two.items():
        if not name.endswith("c_proj.weight"):
            assert torch.equal(tensor, three[name]), name
    assert len(three) > len(two)


@pytest.mark.parametrize("family", CONFIGS)
def test_another_seed_gives_other_weights(family: str) -> None:
    first, second = weights(initialised(family, seed=1)), weights(initialised(family, seed=2))
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]) == (tensor.unique().numel() == 1), name


@pytest.mark.parametrize("family", CONFIGS)
def test_no_two_parameters_start_alike(family: str) -> None:
    drawn = [tensor.flatten()[:32] for tensor in weights(initialised(family)).values() if tensor.unique().numel() > 1]
    assert len(drawn) > 8
    # GPT-2's rescaled projections included: directions are compared, not lengths.
    unit = torch.stack([nn.functional.normalize(vector, dim=0) for vector in drawn])
    assert float((unit @ unit.T - torch.eye(len(drawn))).max()) < 0.99


@pytest.mark.parametrize("family", CONFIGS)
def test_every_parameter_is_touched(family: str) -> None:
    model = constructed(family, CONFIGS[family])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    initialise(model, seed=1, gathered=lambda _: contextlib.nullcontext())
    assert [name for name, tensor in weights(model).items() if tensor.isnan().any()] == []


@pytest.mark.parametrize("family", CONFIGS)
def test_parameters_are_gathered_a_block_at_a_time_and_each_while_it_changes(family: str) -> None:
    """What ZeRO-3 needs: outside the context a parameter is not whole."""
    model = constructed(family, CONFIGS[family])
    whole: set[int] = set()
    largest = 0
    seen: set[int] = set()

    @contextlib.contextmanager
    def gathered(parameters: list[nn.Parameter]) -> Any:
        nonlocal whole, largest
        whole = {id(parameter) for parameter in parameters}
        largest = max(largest, sum(parameter.numel() for parameter in parameters))
        outside = [p.detach().clone() for p in model.parameters() if id(p) not in whole]
        yield
        untouched = [p for p in model.parameters() if id(p) not in whole]
        assert all(torch.equal(a, b) for a, b in zip(outside, untouched, strict=True))
        seen.update(whole)
        whole = set()

    initialise(model, seed=1, gathered=gathered)
    assert seen == {id(parameter) for parameter in model.parameters()}
    blocks = [part for module in model.modules() if isinstance(module, nn.ModuleList) for part in module]
    bound = max(sum(p.numel() for p in block.parameters()) for block in blocks)
    assert largest == max(bound, model.get_input_embeddings().weight.numel())


@pytest.mark.parametrize("family", CONFIGS)
def test_weights_in_16_bits_are_those_of_fp32_rounded(family: str) -> None:
    low = constructed(family, CONFIGS[family]).bfloat16()
    initialise(low, seed=1, gathered=lambda _: contextlib.nullcontext())
    expected = {name: tensor.bfloat16() for name, tensor in weights(initialised(family)).items()}
    assert equal(weights(low), expected)


class OnGpu:
    """A parameter of a GPU that is not here, and its data."""

    dtype = torch.float32

    def __init__(self) -> None:
        self.data: Any = self
        self.device = torch.device("cuda", 0)
        self.written: Tensor | None = None

    def is_floating_point(self) -> bool:
        return True

    def to(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        return torch.empty(4, 3, device=device, dtype=dtype)

    def copy_(self, values: Tensor) -> None:
        self.written = values


def test_weights_on_a_gpu_are_drawn_on_the_cpu() -> None:
    there: Any = OnGpu()
    with on_host([there]):
        assert (there.data.device.type, there.data.dtype) == ("cpu", torch.float32)
        drawn = there.data.normal_(generator=torch.Generator("cpu").manual_seed(1))
    assert there.data is there
    assert there.written is drawn


def test_no_generator_is_disturbed() -> None:
    model = constructed("gpt2", CONFIGS["gpt2"])
    states = torch.get_rng_state(), random.getstate(), numpy.random.get_state()
    initialise(model, seed=1, gathered=lambda _: contextlib.nullcontext())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert numpy.array_equal(numpy.random.get_state()[1], states[2][1])


def kinds(model: PreTrainedModel) -> dict[str, Tensor]:
    """Parameters by what they are: the same place in every block together, flat."""
    grouped: dict[str, list[Tensor]] = {}
    for name, tensor in weights(model).items():
        grouped.setdefault(re.sub(r"\.\d+\.", ".*.", name), []).append(tensor.flatten())
    return {kind: torch.cat(tensors) for kind, tensors in grouped.items()}


@pytest.mark.parametrize("family", WIDER)
def test_the_statistics_are_those_of_transformers(family: str) -> None:
    torch.manual_seed(0)
    theirs = kinds(constructed(family, WIDER[family]))
    ours = kinds(initialised(family, config=WIDER[family]))
    assert ours.keys() == theirs.keys()
    random_kinds = 0
    for kind, tensor in theirs.items():
        if tensor.unique().numel() == 1:
            assert ours[kind].unique().tolist() == tensor.unique().tolist(), kind
            continue
        random_kinds += 1
        # The standard deviation of n draws is known to 1 / sqrt(2 n); four of that on either side.
        slack = 8 / (2 * tensor.numel()) ** 0.5
        assert float(ours[kind].std()) == pytest.approx(float(tensor.std()), rel=slack), kind
        assert abs(float(ours[kind].mean())) < 6 * float(tensor.std()) / tensor.numel() ** 0.5, kind
    assert random_kinds >= 5


def test_gpt2_scales_what_it_adds_to_the_residual() -> None:
    """Radford et al. 2019, section 2.3: by 1 / √N with N residual layers, two in each of 3 blocks here."""
    found = kinds(initialised("gpt2", config=WIDER["gpt2"]))
    for part in ("attn", "mlp"):
        assert float(found[f"transformer.h.*.{part}.c_proj.weight"].std()) == pytest.approx(0.02 / 6**0.5, rel=0.05)
    assert float(found["transformer.h.*.mlp.c_fc.weight"].std()) == pytest.approx(0.02, rel=0.05)


def test_each_module_is_initialised_by_the_innermost_model_around_it() -> None:
    """The rule of xLSTM reads the embeddings of the model that it belongs to, which the model with a head has not."""
    config = {"hidden_size": 32, "embedding_dim": 32, "num_hidden_layers": 2, "num_blocks": 2, "num_heads": 2}
    model = initialised("xlstm", config=config)
    assert model.get_input_embeddings().weight.std() > 0


def test_what_a_rule_leaves_to_the_constructor_is_named() -> None:
    """The rule of the first GPT does not know its linear layers; memory that nothing has written shows as NaN."""
    model = constructed("openai-gpt", {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 16})
    for parameter in model.parameters():
        parameter.data.fill_(float("nan"))
    left = initialise(model, seed=1, gathered=lambda _: contextlib.nullcontext())
    assert len(left) == 2 * 2 * 4
    assert all(name.split(".")[-2] in ("c_attn", "c_proj", "c_fc") for name in left)
    assert initialise(constructed("gpt2", CONFIGS["gpt2"]), seed=1, gathered=lambda _: contextlib.nullcontext()) == []
