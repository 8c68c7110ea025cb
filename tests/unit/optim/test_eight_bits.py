"""AdamW in 8 bits: where it is refused, what the plan counts, and states that stay in pages."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shardyard import extras
from shardyard.errors import HardwareError, RecipeError, UsageError
from shardyard.launch.run.host import refuse_on_this_host
from shardyard.optim import eight_bits
from shardyard.optim.lion_adagrad import client_optimizer
from shardyard.planning.memory import estimate_memory
from shardyard.planning.plan import World, make_plan
from shardyard.planning.plan_text import rows
from shardyard.recipe.loading.load import parse_recipe
from shardyard.recipe.mesh import data_mesh
from shardyard.recipe.rules.rules import check
from shardyard.recipe.schema import Optimizer, Recipe
from shardyard.recipe.sections.eight_bits import EIGHT_BITS
from support.measured import GPT2
from support.tiny import CONFIGS

CPU = torch.device("cpu")


def recipe_of(name: str = "adamw_8bit", **sections: Any) -> Recipe:
    return parse_recipe(
        {
            "name": "eight",
            "model": {"family": "llama", "config": CONFIGS["llama"]},
            "data": {"sequence_length": 32, "train": [{"source": "python-docs"}]},
            "train": {"steps": 2, "global_batch": 4},
            "optimizer": {"name": name, "lr": 1e-3},
            **sections,
        }
    )


def told(recipe: Recipe) -> dict[str, str]:
    return {".".join(map(str, path)): message for path, message in check(recipe)}


def test_a_recipe_names_it_with_its_settings() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    settings = Optimizer(name="adamw_8bit", lr=0.02, betas=[0.8, 0.9], eps=1e-6)
    decayed, other = nn.Parameter(torch.ones(64, 64)), nn.Parameter(torch.ones(2))
    groups = [{"params": [decayed], "weight_decay": 0.1}, {"params": [other], "weight_decay": 0.0}]
    optimizer: Any = client_optimizer(settings, CPU)(groups)
    assert type(optimizer) is bitsandbytes.optim.AdamW8bit
    assert [(group["weight_decay"], group["lr"]) for group in optimizer.param_groups] == [(0.1, 0.02), (0.0, 0.02)]
    assert (optimizer.defaults["betas"], optimizer.defaults["eps"]) == ((0.8, 0.9), 1e-6)
    decayed.grad, other.grad = torch.ones(64, 64), torch.ones(2)
    optimizer.step()
    kept = {name: one.dtype for name, one in optimizer.state[decayed].items() if isinstance(one, Tensor)}
    assert kept == {
        **dict.fromkeys(("state1", "state2"), torch.uint8),
        **dict.fromkeys(("qmap1", "qmap2", "absmax1", "absmax2"), torch.float32),
    }
    # What the plan counts, beside the two tables that all weights share.
    sizes = [optimizer.state[decayed][name].nbytes for name in kept if "qmap" not in name]
    assert sum(sizes) == 2 * 4096 + 2 * 4 * 4096 // 256


@pytest.mark.parametrize("name", EIGHT_BITS)
def test_a_missing_wheel_is_named(monkeypatch: pytest.MonkeyPatch, name: Any) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda module: None)
    with pytest.raises(UsageError, match=f"optimizer.name: {name} needs bitsandbytes, which is not installed: `pip"):
        client_optimizer(Optimizer(name=name, lr=0.1), CPU)([])
    with pytest.raises(RecipeError, match=f"optimizer.name: {name} needs bitsandbytes, which is not installed: `pip"):
        refuse_on_this_host(recipe_of(name), gpu=True)


def test_pages_need_a_gpu() -> None:
    pytest.importorskip("bitsandbytes")
    with pytest.raises(HardwareError, match="need a GPU; use adamw_8bit on the CPU"):
        client_optimizer(Optimizer(name="paged_adamw_8bit", lr=0.1), CPU)([])
    with pytest.raises(RecipeError, match=r"optimizer.name: pages that move between a GPU and the host need a GPU"):
        refuse_on_this_host(recipe_of("paged_adamw_8bit"), gpu=False)
    refuse_on_this_host(recipe_of("paged_adamw_8bit"), gpu=True)
    refuse_on_this_host(recipe_of("adamw_8bit"), gpu=False)
    told_of = told(recipe_of("paged_adamw_8bit", cluster={"gpus_per_worker": 0}))
    assert "use adamw_8bit on the CPU" in told_of["optimizer.name"]


@pytest.mark.parametrize(
    ("sections", "path", "message"),
    [
        ({"zero": {"stage": 2, "offload_optimizer": True}}, "zero.offload_optimizer", "no CPU kernel for adamw_8bit"),
        (
            {"parallel": {"tensor": 2}, "cluster": {"workers": 2}},
            "optimizer.name",
            "is not tested with parallel.tensor",
        ),
        (
            {
                "model": {"family": "mixtral", "config": CONFIGS["mixtral"]},
                "parallel": {"expert": 2},
                "cluster": {"workers": 2},
            },
            "optimizer.name",
            "adamw_8bit does not support expert parallelism",
        ),
    ],
)
def test_what_is_not_tested_is_refused(sections: dict[str, Any], path: str, message: str) -> None:
    assert message in told(recipe_of(**sections))[path]


def test_other_stages_take_it() -> None:
    for stage in range(4):
        assert not told(recipe_of(zero={"stage": stage}))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_plan_counts_two_bytes_and_a_scale_for_each_block(stage: int) -> None:
    def optimizer_bytes(name: str) -> int:
        recipe = recipe_of(name, zero={"stage": stage}, train={"steps": 2, "global_batch": 4, "precision": "bf16"})
        return estimate_memory(recipe, GPT2, data_mesh(4), micro_batch=1).optimizer_bytes

    share = GPT2.parameters / (4 if stage else 1)
    # The fp32 copy of the weights stays.
    assert optimizer_bytes("adamw_8bit") == pytest.approx((4 + 2 + 8 / 256) * share, abs=16)
    assert optimizer_bytes("paged_adamw_8bit") == optimizer_bytes("adamw_8bit")
    assert optimizer_bytes("adamw") == pytest.approx(12 * share, abs=16)


def test_the_plan_explains_it_and_deepspeed_is_given_none() -> None:
    plan = make_plan(recipe_of(), GPT2, World(size=1, gpu=False))
    assert "optimizer" not in plan.deepspeed
    row = next(row for row in rows(plan) if row[0] == "optimizer")
    assert row[1] == "adamw_8bit"
    assert "resumes at the same ranks and ZeRO stage" in row[2]
    assert not any(row[0] == "optimizer" for row in rows(make_plan(recipe_of("adamw"), GPT2, World(1, gpu=False))))


class Paging:
    """What a resume needs of a paged optimizer: pages for large states, and loading that leaves them."""

    def __init__(self) -> None:
        self.state: dict[str, dict[str, Any]] = {}
        self.given: list[tuple[Any, ...]] = []
        self.pages: list[Tensor] = []

    def load_state_dict(self, state: Mapping[str, dict[str, Any]], *given: Any) -> None:
        self.given.append(given)
        self.state = {name: dict(one) for name, one in state.items()}

    def get_state_buffer(self, parameter: str, dtype: torch.dtype) -> Tensor:
        self.pages.append(torch.zeros(3, dtype=dtype))
        return self.pages[-1]


def test_loaded_states_are_in_pages_again() -> None:
    optimizer = Paging()
    eight_bits._stay_in_pages(optimizer)
    first, second, scales = torch.tensor([1, 2, 3], dtype=torch.uint8), torch.arange(3.0), torch.ones(1)
    optimizer.load_state_dict({"w": {"state1": first, "state2": second, "absmax1": scales, "step": 4}}, True)
    assert optimizer.given == [(True,)]
    one = SimpleNamespace(**optimizer.state["w"])
    assert [page is kept for page, kept in zip(optimizer.pages, (one.state1, one.state2), strict=True)] == [True, True]
    assert (one.state1.dtype, one.state1.tolist(), one.state2.tolist()) == (torch.uint8, [1, 2, 3], [0.0, 1.0, 2.0])
    assert one.absmax1 is scales
    assert one.step == 4
