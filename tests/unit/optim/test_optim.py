"""Parameter groups, and our own optimizers against the papers and torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from shardyard.models.build import architecture_config, construct
from shardyard.optim.groups import parameter_groups
from shardyard.optim.lion_adagrad import Adagrad, Lion, client_optimizer
from shardyard.recipe.schema import Model, Optimizer
from support.tiny import CONFIGS


def tiny_model(family: str) -> PreTrainedModel:
    model = Model(family=family, config=CONFIGS[family])
    return construct(model, architecture_config(model, vocabulary=257))


@pytest.mark.parametrize("family", CONFIGS)
def test_norms_and_biases_are_not_decayed(family: str) -> None:
    model = tiny_model(family)
    decayed, others = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    undecayed = {names[id(parameter)] for parameter in others["params"]}
    expected = {name for name in names.values() if "norm" in name or ".ln_" in name or name.endswith("bias")}
    assert undecayed == expected
    assert len(undecayed) >= 5
    assert len(decayed["params"]) + len(others["params"]) == len(names)


def test_tied_weights_are_in_one_group_once() -> None:
    model = tiny_model("gpt2")
    table = model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight is table
    everything = [parameter for group in parameter_groups(model, 0.1) for parameter in group["params"]]
    assert sum(parameter is table for parameter in everything) == 1
    assert len({id(parameter) for parameter in everything}) == len(everything)


def test_frozen_weights_are_left_out_and_empty_groups_too() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    model[0].requires_grad_(False)
    (group,) = parameter_groups(model, 0.1)
    assert group["weight_decay"] == 0.0
    assert [id(parameter) for parameter in group["params"]] == [id(parameter) for parameter in model[1].parameters()]


def test_a_partitioned_matrix_is_decayed_by_its_own_shape() -> None:
    """Under ZeRO-3 `shape` is that of an empty remainder; `ds_shape` is the parameter's."""
    model = nn.Linear(4, 4)
    for parameter in model.parameters():
        parameter.ds_shape = parameter.shape  # type: ignore[attr-defined]
        parameter.data = torch.empty(0)
    decayed, others = parameter_groups(model, 0.1)
    assert [id(parameter) for parameter in decayed["params"]] == [id(model.weight)]
    assert [id(parameter) for parameter in others["params"]] == [id(model.bias)]


class Adapted(nn.Module):
    """A linear layer with the names of an adapter's parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.lora_A = nn.ModuleDict({"default": nn.Linear(4, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, 4, bias=False)})
        self.norm = nn.LayerNorm(4)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.norm(self.lora_B["default"](self.lora_A["default"](inputs)))


def test_lora_plus_trains_b_faster_as_peft_does() -> None:
    from peft.optimizers import create_loraplus_optimizer

    theirs: Any = create_loraplus_optimizer(
        nn.ModuleDict({"layer": Adapted()}),  # type: ignore[arg-type]
        torch.optim.AdamW,
        lr=0.01,
        loraplus_lr_ratio=16.0,
        loraplus_weight_decay=0.1,
    )

    def rates(optimizer: torch.optim.Optimizer) -> set[tuple[tuple[int, ...], float, float]]:
        return {
            (tuple(parameter.shape), group["lr"], group["weight_decay"])
            for group in optimizer.param_groups
            for parameter in group["params"]
        }

    groups: Any = parameter_groups(nn.ModuleDict({"layer": Adapted()}), 0.1, lr_of_b=0.16)
    assert [group["name"] for group in groups] == ["decayed", "faster", "others"]
    assert rates(torch.optim.AdamW(groups, lr=0.01)) == rates(theirs)


def random_run(steps: int = 20) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(3)
    start = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    return start, [torch.randn(7, 5, generator=generator, dtype=torch.float64) for _ in range(steps)]


def train(optimizer_of: Any, start: Tensor, gradients: list[Tensor]) -> Tensor:
    parameter = nn.Parameter(start.clone())
    optimizer = optimizer_of([parameter])
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


def lion_reference(w: Tensor, gradients: list[Tensor], lr: float, beta1: float, beta2: float, decay: float) -> Tensor:
    """Chen et al. 2023, algorithm 2, line by line."""
    m = torch.zeros_like(w)
    for g in gradients:
        c = beta1 * m + (1 - beta1) * g
        update = torch.sign(c) + decay * w
        m = beta2 * m + (1 - beta2) * g
        w = w - lr * update
    return w


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_lion_is_the_papers(weight_decay: float) -> None:
    start, gradients = random_run()
    ours = train(lambda p: Lion(p, lr=0.01, betas=(0.9, 0.99), weight_decay=weight_decay), start, gradients)
    torch.testing.assert_close(ours, lion_reference(start, gradients, 0.01, 0.9, 0.99, weight_decay))
    assert not torch.equal(ours, start)


def test_lion_moves_every_weight_by_the_learning_rate() -> None:
    start, gradients = random_run(1)
    ours = train(lambda p: Lion(p, lr=0.01, betas=(0.9, 0.99)), start, gradients)
    torch.testing.assert_close(ours, start - 0.01 * gradients[0].sign())


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_adagrad_is_torchs(weight_decay: float) -> None:
    start, gradients = random_run()
    settings = {"lr": 0.05, "eps": 1e-8, "weight_decay": weight_decay}
    ours = train(lambda p: Adagrad(p, **settings), start, gradients)
    theirs = train(lambda p: torch.optim.Adagrad(p, **settings, foreach=False), start, gradients)
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, start)


@pytest.mark.parametrize("name", ["lion", "adagrad"])
def test_a_recipe_names_its_optimizer(name: Any) -> None:
    settings = Optimizer(name=name, lr=0.02, weight_decay=0.1, betas=[0.8, 0.9], eps=1e-6)
    decayed, other = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    groups = [{"params": [decayed], "weight_decay": 0.1}, {"params": [other], "weight_decay": 0.0}]
    optimizer = client_optimizer(settings, torch.device("cpu"))(groups)
    assert type(optimizer) is {"lion": Lion, "adagrad": Adagrad}[name]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert {group["lr"] for group in optimizer.param_groups} == {0.02}
    if name == "lion":
        assert optimizer.defaults["betas"] == (0.8, 0.9)
    else:
        assert optimizer.defaults["eps"] == 1e-6


def test_an_optimizer_of_deepspeeds_is_none_of_ours() -> None:
    with pytest.raises(AssertionError, match="adamw"):
        client_optimizer(Optimizer(name="adamw", lr=0.1), torch.device("cpu"))


def test_a_weight_without_a_gradient_stays_and_a_state_travels() -> None:
    start, gradients = random_run()
    idle = nn.Parameter(torch.ones(3))

    def lion(parameters: list[nn.Parameter]) -> Lion:
        return Lion([*parameters, idle], lr=0.01, betas=(0.9, 0.99), weight_decay=0.5)

    whole = train(lion, start, gradients)
    assert torch.equal(idle, torch.ones(3))
    first, second = nn.Parameter(start.clone()), nn.Parameter(torch.empty(0, dtype=torch.float64))
    before = lion([first])
    for gradient in gradients[:10]:
        first.grad = gradient
        before.step()
    second.data = first.detach().clone()
    after = lion([second])
    after.load_state_dict(before.state_dict())
    for gradient in gradients[10:]:
        second.grad = gradient
        after.step()
    assert torch.equal(second, whole)
