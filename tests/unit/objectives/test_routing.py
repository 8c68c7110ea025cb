"""Losses and metrics of routers against transformers' own, papers' formulas and tables made by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from shardyard.errors import ModelError
from shardyard.models.build import architecture_config, construct
from shardyard.objectives.base import Measured, Totals
from shardyard.objectives.causal_lm.loss import CausalLM, make
from shardyard.objectives.inputs import ObjectiveInputs
from shardyard.objectives.routing import (
    Route,
    balance_loss,
    expert_metrics,
    expert_table,
    num_experts,
    observe,
    watching,
    z_loss,
)
from shardyard.recipe.schema import Experts, Model
from shardyard.tracking.metrics.record import evaluation_of

BASE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
MIXTRAL = BASE | {"num_local_experts": 4, "num_experts_per_tok": 2}
QWEN = BASE | {"num_experts": 4, "moe_intermediate_size": 24, "head_dim": 16}
DEEPSEEK = BASE | {
    "moe_intermediate_size": 16,
    "n_shared_experts": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 0,
}
# Family, configuration, experts, choices a token: top-1 in the manner of Switch, softmax, groups, sigmoid with a bias.
FAMILIES: list[tuple[str, dict[str, Any], int, int]] = [
    ("mixtral", MIXTRAL, 4, 2),
    ("qwen3_moe", QWEN | {"num_experts_per_tok": 1, "norm_topk_prob": False}, 4, 1),
    ("qwen2_moe", QWEN | {"num_experts_per_tok": 2, "shared_expert_intermediate_size": 24}, 4, 2),
    ("olmoe", BASE | {"num_experts": 4, "num_experts_per_tok": 2}, 4, 2),
    ("gpt_oss", MIXTRAL | {"head_dim": 16}, 4, 2),
    ("deepseek_v2", DEEPSEEK | {"topk_method": "greedy", "n_group": 1, "topk_group": 1}, 8, 2),
    ("deepseek_v3", DEEPSEEK | {"n_group": 2, "topk_group": 1}, 8, 2),
]
NAMES = [f"{family}-top{chosen}" for family, _, _, chosen in FAMILIES]
ROWS, LENGTH = 3, 16


def tiny(family: str, config: dict[str, Any]) -> PreTrainedModel:
    torch.manual_seed(3)
    model = Model(family=family, config=config, dropout=0.0, attention="eager")
    built = construct(model, architecture_config(model, vocabulary=97))
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if name.endswith(("gate.weight", "router.weight")):
                parameter.normal_()
    return built


def batch() -> dict[str, Tensor]:
    ids = torch.randint(0, 97, (ROWS, LENGTH + 1), generator=torch.Generator().manual_seed(1))
    return {
        "input_ids": ids[:, :-1],
        "labels": ids[:, 1:],
        "position_ids": torch.arange(LENGTH).expand(ROWS, LENGTH),
    }


def routes(tokens: int, experts: int, chosen: int, layers: int = 2) -> list[Route]:
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(tokens, experts, generator=generator, requires_grad=True) for _ in range(layers)]
    return [Route(one, one.softmax(-1).topk(chosen).indices) for one in logits]


def totals(measured: Measured, counts: dict[str, float]) -> Totals:
    observed = {name: value.double() for name, value in measured.observed.items()}
    return Totals({name: float(value.detach()) for name, value in measured.losses.items()}, observed, counts)


def of_transformers(logits: Sequence[Tensor], chosen: int) -> Tensor:
    """The mean over layers of Mixtral's loss of one layer."""
    each = [load_balancing_loss_func((one,), one.size(-1), chosen) for one in logits]
    return torch.stack([torch.as_tensor(loss) for loss in each]).mean()


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("chosen", [1, 2, 3])
def test_the_balance_loss_of_a_layer_is_that_of_mixtral(chosen: int, layers: int) -> None:
    made = routes(50, 6, chosen, layers)
    theirs = of_transformers([route.logits for route in made], chosen)
    ours = balance_loss(made)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    gradient = torch.autograd.grad(theirs, made[0].logits, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(ours, made[0].logits)[0], gradient)
    assert float(gradient.abs().max()) > 0


def test_layers_that_neglect_different_experts_are_not_balanced() -> None:
    """Means over all layers would be even here, and leave both layers with a dead expert."""
    first = Route(torch.tensor([[50.0, 0.0]]).expand(8, 2), torch.zeros(8, 1, dtype=torch.int64))
    second = Route(torch.tensor([[0.0, 50.0]]).expand(8, 2), torch.ones(8, 1, dtype=torch.int64))
    assert balance_loss([first, second]).item() == pytest.approx(2)
    pooled = load_balancing_loss_func((first.logits, second.logits), 2, 1)
    assert torch.as_tensor(pooled).item() == pytest.approx(1)


def test_even_routing_gives_the_number_of_choices_and_collapse_gives_the_number_of_experts() -> None:
    even = Route(torch.zeros(4, 4), torch.tensor([[0, 1], [2, 3], [0, 1], [2, 3]]))
    assert balance_loss([even]).item() == pytest.approx(2)
    collapsed = Route(torch.tensor([[50.0, 0, 0, 0]]).expand(8, 4), torch.zeros(8, 1, dtype=torch.int64))
    assert balance_loss([collapsed]).item() == pytest.approx(4)


def test_layers_that_collapse_to_different_experts_are_not_even() -> None:
    first = Route(torch.tensor([[50.0, 0]]).expand(8, 2), torch.zeros(8, 1, dtype=torch.int64))
    second = Route(torch.tensor([[0, 50.0]]).expand(8, 2), torch.ones(8, 1, dtype=torch.int64))
    assert balance_loss([first, second]).item() == pytest.approx(2)
    assert load_balancing_loss_func((first.logits, second.logits), 2, 1).item() == pytest.approx(1)


def test_z_loss_is_the_mean_over_layers_of_squared_partition_functions() -> None:
    first, second = torch.tensor([[0.0, 0.0], [1.0, 2.0]]), torch.tensor([[3.0, -1.0], [0.5, 0.5]])
    both = [Route(logits, logits.topk(1).indices) for logits in (first, second)]
    by_hand = sum(math.log(math.exp(a) + math.exp(b)) ** 2 for logits in (first, second) for a, b in logits.tolist())
    assert float(z_loss(both)) == pytest.approx(by_hand / 2)


@pytest.mark.parametrize(("family", "config", "experts", "chosen"), FAMILIES, ids=NAMES)
def test_every_router_is_seen(family: str, config: dict[str, Any], experts: int, chosen: int) -> None:
    """Each choice of each token is counted once, in each layer, and the metrics are those of the choices."""
    model = tiny(family, config)
    assert num_experts(model.config) == experts
    with watching(model) as seen:
        model(input_ids=batch()["input_ids"], use_cache=False)
    assert [tuple(route.logits.shape) for route in seen] == [(ROWS * LENGTH, experts)] * 2
    assert all(tuple(route.chosen.shape) == (ROWS * LENGTH, chosen) for route in seen)
    for route in seen:
        torch.testing.assert_close(route.probabilities().sum(-1), torch.ones(ROWS * LENGTH))
    metrics = expert_metrics(observe(seen))
    assert metrics["moe/dropped"] == 0
    assert 0 < metrics["moe/entropy"] <= math.log(experts)
    assert metrics["moe/load_min"] <= 1 <= metrics["moe/load_max"] <= experts / chosen
    assert sum(expert_table(observe(seen)).values()) == 2 * ROWS * LENGTH * chosen
    with watching(model) as again:
        pass
    model(input_ids=batch()["input_ids"], use_cache=False)
    assert again == [], "hooks outlived their watch"


def test_sigmoid_scores_are_known_from_their_bias() -> None:
    with watching(tiny("deepseek_v3", FAMILIES[-1][1])) as v3, watching(tiny("mixtral", MIXTRAL)) as softmax:
        assert v3 == softmax == []
    model = tiny("deepseek_v3", FAMILIES[-1][1])
    with watching(model) as v3:
        model(input_ids=batch()["input_ids"], use_cache=False)
    scores = v3[0].logits.sigmoid()
    torch.testing.assert_close(v3[0].probabilities(), scores / scores.sum(-1, keepdim=True))


def test_metrics_of_a_table_made_by_hand() -> None:
    """Two layers of two experts: even in the first, all on one in the second."""
    even = Route(torch.zeros(4, 2), torch.tensor([[0], [1], [0], [1]]))
    one = Route(torch.tensor([[math.log(3), 0.0]]).expand(4, 2), torch.zeros(4, 1, dtype=torch.int64))
    metrics = expert_metrics(observe([even, one]))
    entropy = (math.log(2) - 0.75 * math.log(0.75) - 0.25 * math.log(0.25)) / 2
    assert metrics == pytest.approx(
        {
            "moe/load_max": 2,
            "moe/load_min": 0,
            "moe/entropy": entropy,
            "moe/entropy_relative": entropy / math.log(2),
            "moe/dead_experts": 1,
            "moe/dropped": 0,
            "moe/balance_loss": (1 + 2 * 0.75) / 2,
        }
    )
    assert expert_table(observe([even, one])) == {
        "moe/tokens/layer_00/expert_00": 2,
        "moe/tokens/layer_00/expert_01": 2,
        "moe/tokens/layer_01/expert_00": 4,
        "moe/tokens/layer_01/expert_01": 0,
    }


def test_the_table_stays_out_of_summaries() -> None:
    """Model cards and tables of runs tell what an evaluation measured, and not one number for each expert."""
    record = {"eval/validation/loss": 2.5, "eval/validation/moe/dead_experts": 0.0}
    table = {"eval/validation/moe/tokens/layer_00/expert_00": 4.0}
    assert evaluation_of(record | table) == {"loss": 2.5, "moe/dead_experts": 0.0}


def test_choices_that_name_no_expert_are_dropped_tokens() -> None:
    route = Route(torch.zeros(3, 2), torch.tensor([[0], [1], [2]]))  # 2 is no expert of two
    assert expert_metrics(observe([route]))["moe/dropped"] == 1


def test_the_objective_adds_what_the_recipe_weighs() -> None:
    """The terms are sums whose mean is transformers' own of one layer, and the gradient that of the weighted sum."""
    model = tiny("mixtral", MIXTRAL | {"num_hidden_layers": 1})
    objective = CausalLM(experts=Experts(balance=0.02), has_experts=True)
    measured = objective.measure(model, batch())
    counts = objective.counts(batch())
    assert counts == {"loss": ROWS * LENGTH, "balance": ROWS * LENGTH}
    output = model(input_ids=batch()["input_ids"], output_router_logits=True, use_cache=False)
    theirs = of_transformers(output.router_logits, 2)
    found = totals(measured, counts)
    assert found.mean("balance") == pytest.approx(theirs.item(), abs=1e-6)
    assert objective.total(found) == pytest.approx(found.mean("loss") + 0.02 * theirs.item(), rel=1e-6)
    metrics = objective.metrics(found)
    assert metrics["loss"] == found.mean("loss"), "an evaluation compares models, so it leaves the balance loss out"
    assert metrics["moe/balance_loss"] == pytest.approx(theirs.item(), abs=1e-6)
    assert objective.train_metrics(found)["train/cross_entropy"] == found.mean("loss")
    assert not any(name.startswith("moe/tokens") for name in objective.train_metrics(found))
    gate = model.model.layers[0].mlp.gate.weight
    (ours,) = torch.autograd.grad(measured.losses["balance"] / counts["balance"], gate)
    torch.testing.assert_close(ours, torch.autograd.grad(theirs, gate)[0], rtol=1e-4, atol=1e-7)


def test_activation_checkpointing_counts_once_and_keeps_the_gradient() -> None:
    """The balance loss reaches into a block that is computed anew; its hooks are gone by then."""
    gradients = []
    for checkpointed in (False, True):
        model = tiny("mixtral", MIXTRAL).train()
        if checkpointed:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        measured = CausalLM(experts=Experts(balance=1.0), has_experts=True).measure(model, batch())
        sum(measured.losses.values(), torch.zeros(())).backward()
        assert int(measured.observed["experts/tokens"].sum()) == 2 * ROWS * LENGTH * 2
        gradients.append(model.model.layers[0].mlp.gate.weight.grad)
    torch.testing.assert_close(gradients[1], gradients[0])


def test_a_dense_model_has_no_metrics_of_experts() -> None:
    model = tiny("llama", BASE)
    objective = make(ObjectiveInputs(model=model.config))
    measured = objective.measure(model, batch())
    assert measured.observed == {}
    assert objective.train_metrics(totals(measured, objective.counts(batch()))) == {}


def test_routers_that_cannot_be_seen_are_refused_where_they_are_to_be_balanced() -> None:
    class Blind(nn.Module):
        def forward(self, input_ids: Tensor, **_: Any) -> Any:
            return type("Output", (), {"logits": torch.zeros(*input_ids.shape, 97)})

    assert CausalLM(experts=Experts(), has_experts=True).measure(Blind(), batch()).observed == {}
    with pytest.raises(ModelError, match=r"cannot be watched.*set them to 0"):
        CausalLM(experts=Experts(balance=0.1), has_experts=True).measure(Blind(), batch())
