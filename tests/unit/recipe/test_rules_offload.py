"""What can be offloaded, and where; every refusal says why."""

from __future__ import annotations

from typing import Any

import pytest

from shardyard.errors import RecipeError
from shardyard.planning.deepspeed_config import deepspeed_config
from shardyard.recipe.loading.load import parse_recipe
from shardyard.recipe.rules.rules import check
from shardyard.recipe.schema import Recipe

NVME = {"stage": 3, "offload_optimizer": "nvme", "nvme_path": "/disk"}


def recipe_of(zero: dict[str, Any], **sections: Any) -> Recipe:
    base: dict[str, Any] = {
        "name": "offload",
        "model": {"family": "gpt2"},
        "tokenizer": "bytes",
        "data": {"sequence_length": 64, "train": [{"source": "python-docs"}]},
        "train": {"steps": 10, "global_batch": 8, "precision": "bf16"},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "zero": zero,
    }
    return parse_recipe({**base, **{name: {**base.get(name, {}), **one} for name, one in sections.items()}})


@pytest.mark.parametrize(
    ("zero", "sections", "message"),
    [
        ({**NVME, "stage": 2}, {}, "zero.offload_optimizer: nvme needs ZeRO stage 3, not 2: DeepSpeed swaps nothing"),
        ({"stage": 3, "offload_optimizer": "nvme"}, {}, "a local disk of every host; set zero.nvme_path"),
        (NVME, {"optimizer": {"name": "lion"}}, "nvme is tested with adamw and adam, not with lion; use one, or cpu"),
        (NVME, {"optimizer": {"name": "sgd"}}, "DeepSpeed has no CPU kernel for sgd"),
        (NVME, {"train": {"precision": "fp16"}}, "nvme takes bf16 and fp32, not fp16"),
        (NVME, {"checkpoint": {"background": True}}, "checkpoint.background: would copy to host memory what nvme"),
        (NVME, {"model": {"adapter": {"rank": 4}}}, "nvme is not tested with adapters"),
        ({**NVME, "hpz_partition_size": 2}, {"cluster": {"workers": 4}}, "zero.hpz_partition_size: is not tested wi"),
        ({"stage": 3, "offload_parameters": "nvme"}, {}, "zero.offload_parameters: nvme is not supported: its parts"),
        ({"stage": 1, "offload_optimizer": True, "nvme_path": "/disk"}, {}, "has no effect without zero.offload_opt"),
        ({"stage": 2, "sub_group_size": 1000}, {}, "zero.sub_group_size: has no effect at ZeRO stage 2"),
        ({"stage": 2, "pin_memory": False}, {}, "zero.pin_memory: has no effect without offloading"),
    ],
)
def test_what_cannot_be_offloaded_is_refused(zero: dict[str, Any], sections: dict[str, Any], message: str) -> None:
    found = [f"{'.'.join(map(str, path))}: {text}" for path, text in check(recipe_of(zero, **sections))]
    assert any(message in one for one in found), found


def test_a_place_that_does_not_exist_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"zero\.offload_optimizer"):
        recipe_of({"stage": 1, "offload_optimizer": "disk"})


@pytest.mark.parametrize("where", [True, "cpu"])
def test_memory_of_the_host_has_two_names(where: Any) -> None:
    made = recipe_of({"stage": 1, "offload_optimizer": where})
    assert check(made) == []
    config = deepspeed_config(made, micro_batch=1, accumulation=8, gpu=True)["zero_optimization"]
    assert config["offload_optimizer"] == {"device": "cpu", "pin_memory": True}  # type: ignore[index]


def test_a_disk_is_accepted_with_all_that_is_tested() -> None:
    made = recipe_of({**NVME, "offload_parameters": "cpu", "pin_memory": False, "sub_group_size": 1000})
    assert check(made) == []
