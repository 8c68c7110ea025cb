"""DeepSpeed 0.19.8 knows no groups but its own: what `engine/parallel/quirks.py` sets is there, and is read."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from deepspeed.utils import groups

from shardyard.engine.mesh import single_process
from shardyard.engine.parallel.quirks import use_groups


def test_the_private_names_are_those_that_deepspeed_reads() -> None:
    for getter, name in (
        (groups.get_tensor_model_parallel_group, "_TENSOR_MODEL_PARALLEL_GROUP"),
        (groups.get_model_parallel_group, "_MODEL_PARALLEL_GROUP"),
        (groups.get_data_parallel_group, "_DATA_PARALLEL_GROUP"),
    ):
        assert hasattr(groups, name)
        assert name in inspect.getsource(getter)
    # Groups that are there are kept: DeepSpeed would form others, of all ranks.
    assert "if _TENSOR_MODEL_PARALLEL_GROUP is not None:\n        return" in inspect.getsource(
        groups._init_tp_mesh_device
    )


def test_a_run_without_tensor_parallelism_leaves_nothing_of_an_earlier_one() -> None:
    found: Any = groups
    found.mpu, found._TENSOR_MODEL_PARALLEL_GROUP = found, "of another run"
    assert use_groups(single_process(torch.device("cpu"))) is None
    assert (found.mpu, found._TENSOR_MODEL_PARALLEL_GROUP, found._DATA_PARALLEL_GROUP) == (None, None, None)
