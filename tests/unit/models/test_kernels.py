"""`model.kernels: liger`: where it is refused, and that a family without kernels is."""

from __future__ import annotations

from types import MethodType

import pytest
import torch
from torch import nn

from shardyard.errors import HardwareError, ModelError, UsageError
from shardyard.models import kernels

CUDA = torch.device("cuda", 0)


def test_cpus_have_no_kernels() -> None:
    with pytest.raises(HardwareError, match="run on GPUs only"):
        kernels.use_liger(nn.Linear(2, 2), "llama", torch.device("cpu"))


def test_what_is_missing_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shardyard.extras.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="needs liger_kernel, triton, which are not installed"):
        kernels.use_liger(nn.Linear(2, 2), "llama", CUDA)


def test_a_family_without_kernels_is_refused_and_the_loss_stays_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    def apply(model: nn.Module, chosen: dict[str, bool]) -> None:
        given.append(chosen)

    monkeypatch.setattr(kernels, "require", lambda *_: None)
    monkeypatch.setattr("transformers.integrations.liger.apply_liger_kernel", apply)
    with pytest.raises(ModelError, match="no kernels for the family rwkv"):
        kernels.use_liger(nn.Linear(2, 2), "rwkv", CUDA)
    assert given == [{"cross_entropy": False, "fused_linear_cross_entropy": False}]

    def replace(model: nn.Module, chosen: dict[str, bool]) -> None:
        model.forward = MethodType(lambda self, values: values, model)

    monkeypatch.setattr("transformers.integrations.liger.apply_liger_kernel", replace)
    kernels.use_liger(nn.Linear(2, 2), "llama", CUDA)
