"""What Shardyard works around in DeepSpeed: that it still needs it. What the workarounds do is tested in training.

A test that fails here says that a workaround in `engine/deepspeed/quirks.py` has become unnecessary, or that a name has
gone that it is made of.
"""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from deepspeed.module_inject import auto_ep_layer
from deepspeed.runtime import engine as deepspeed_engine
from deepspeed.runtime.fp16 import unfused_optimizer
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.runtime.zero import partition_parameters
from deepspeed.utils import zero_to_fp32
from torch import nn

from shardyard.engine.deepspeed import quirks
from shardyard.objectives.quirks import is_parallel_layer


def test_deepspeed_still_builds_an_operation_that_training_does_not_use() -> None:
    assert "__compatible_ops__" in inspect.getsource(importlib.import_module("deepspeed.comm.torch"))


_MUON = """
import sys
from shardyard.engine.deepspeed import quirks
quirks.import_muon(compiled={compiled})
from deepspeed.runtime.zero.muon import original_muon
print(getattr(original_muon, "_plain", False), "torch._dynamo" in sys.modules)
"""


@pytest.mark.slow
def test_deepspeed_still_compiles_muon_for_every_optimizer() -> None:
    from deepspeed.runtime.zero.muon import original_muon

    assert "@compiler.compile()" in inspect.getsource(original_muon)
    script = _MUON.format(compiled=False)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.split()[-2] == "True"


def test_deepspeed_still_sends_parameters_as_bytes_which_none_without_axes_is() -> None:
    assert "param.data.view(torch.uint8)" in inspect.getsource(partition_parameters.Init._zero_init_param)
    with pytest.raises(RuntimeError, match=r"self\.dim"):
        torch.zeros(()).view(torch.uint8)
    model = nn.Module()
    model.scale = nn.Parameter(torch.tensor(2.0))
    quirks.give_axes(model)
    assert model.scale.shape == (1,)
    assert model.scale.item() == 2.0


def test_deepspeed_still_rounds_the_buffers_of_a_constructor() -> None:
    source = inspect.getsource(partition_parameters)
    assert "zero_wrapper_for_fp_tensor_constructor" in source
    module = nn.Module()
    module.register_buffer("frequencies", torch.zeros(2, dtype=torch.bfloat16))
    module.register_buffer("places", torch.zeros(2, dtype=torch.int64))
    quirks.widen_buffers(module)
    assert (module.frequencies.dtype, module.places.dtype) == (torch.float32, torch.int64)


def _unfused(weight: nn.Parameter) -> FP16_UnfusedOptimizer:
    optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.5)
    return FP16_UnfusedOptimizer(optimizer, low_precision_dtype=torch.float16, clip_grad=0.0)


def test_deepspeed_still_trains_a_step_of_nothing_in_half_precision_without_zero(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(unfused_optimizer.dist, "get_rank", lambda: 1)
    monkeypatch.setattr(unfused_optimizer.dist, "get_world_size", lambda *_: 1)
    weight = nn.Parameter(torch.ones(4, dtype=torch.float16))
    optimizer = _unfused(weight)
    master = optimizer.fp32_groups[0][0]
    assert master.max().item() < 1.0
    assert optimizer.optimizer.state[master]["step"] == 1
    quirks.undo_trial_step(SimpleNamespace(optimizer=optimizer))
    assert torch.equal(master, torch.ones(4))
    assert not optimizer.optimizer.state


def test_deepspeed_still_refuses_fp32_sums_of_gradients_without_zero() -> None:
    unsure = SimpleNamespace(
        get_data_types=lambda: (torch.bfloat16, torch.float32),
        zero_optimization=lambda: False,
        pipeline_parallelism=False,
    )
    with pytest.raises(NotImplementedError, match="unsupported mix"):
        deepspeed_engine.DeepSpeedEngine._do_optimizer_sanity_check(unsure, None)


def test_without_zero_gradients_that_a_step_does_not_reach_are_zeros_of_their_format() -> None:
    model = nn.ModuleList([nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)]).bfloat16()
    engine = SimpleNamespace(
        module=model, _get_gradients_for_reduction=lambda: [one.grad for one in model.parameters()]
    )
    quirks.accumulate_in_fp32(engine)
    for _ in range(300):
        model[0](torch.full((1, 2), 0.01, dtype=torch.bfloat16)).sum().backward()
    reached, other = engine._get_gradients_for_reduction()
    assert reached.dtype == other.dtype == torch.float32
    # In bf16 a sum of three stays at 2.5 or less, because a hundredth rounds to nothing beside it.
    assert torch.allclose(reached, torch.full((1, 2), 3.0), rtol=3e-3)
    assert not other.any()


def test_deepspeed_still_copies_scripts_beside_checkpoints() -> None:
    assert "self._copy_recovery_script(" in inspect.getsource(deepspeed_engine.DeepSpeedEngine)


def test_deepspeed_still_executes_what_a_checkpoint_says() -> None:
    assert "weights_only=False" in inspect.getsource(zero_to_fp32)
    plain = torch.load
    with quirks.reading_by(lambda *_: "read"):
        assert torch.load("any") == "read"
    assert torch.load is plain


def test_deepspeed_still_marks_spread_experts_by_a_private_name() -> None:
    layer = nn.Module()
    assert not is_parallel_layer(layer)
    layer._is_autoep_layer = auto_ep_layer.AutoEPMoELayer._is_autoep_layer
    assert is_parallel_layer(layer)


def test_deepspeed_still_takes_the_values_of_a_tensor_for_its_size() -> None:
    """Rates of stochastic depth that a constructor computes so would come from unwritten memory."""
    sized = partition_parameters.get_new_tensor_fn_for_dtype(torch.float32, torch.device("cpu"))
    assert sized(torch.Tensor, [2, 3]).shape == (2, 3)
    new = quirks.with_values(sized, torch.Tensor.__new__)
    assert new(torch.Tensor, np.linspace(0.0, 0.5, 3)).tolist() == [0.0, 0.25, 0.5]
    assert new(torch.Tensor, [0.5, 0.25]).tolist() == [0.5, 0.25]
    assert new(torch.Tensor, 2, 3).shape == (2, 3)


def test_unwritten_memory_is_nan_within_the_context_alone() -> None:
    with quirks.unwritten_as_nan():
        assert torch.empty(64).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()
