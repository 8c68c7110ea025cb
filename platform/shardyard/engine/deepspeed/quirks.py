"""Workarounds for DeepSpeed, and its private names; tests tell when each is no longer needed.

Seen in DeepSpeed 0.19.8, and in torch 2.13 that compiles its operations; pyproject.toml pins both.
`tests/unit/engine/test_deepspeed_quirks.py` and `test_build_locks.py` fail where a newer version no longer needs one of
these.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.runtime import compiler
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from torch import Tensor, nn
from torch.utils import cpp_extension
from torch.utils.file_baton import FileBaton

from shardyard.engine.deepspeed import build_locks
from shardyard.errors import HardwareError
from shardyard.replaced import replaced

_MUON = "deepspeed.runtime.zero.muon"
# Another rank, or another run, compiles for a minute or two; longer waits are reported.
REPORTED_SECONDS = 20.0
_LOOK_SECONDS = 2.0


# Starting.


def compile_no_operation() -> None:
    """Keep DeepSpeed from compiling a shared-memory all-reduce that only its inference uses.

    It takes half a minute and a compiler. Nothing else reads this table, so the other operations need no probing with a
    compiler either.
    """
    deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}


def import_muon(*, compiled: bool) -> None:
    """Import DeepSpeed's Muon, without torch's compiler where another optimizer trains.

    DeepSpeed asks of every optimizer whether it is Muon, whose modules import the compiler to decorate three functions:
    two seconds of every start.
    """
    for name in ("muon_optimizer", "original_muon"):
        module = sys.modules.get(f"{_MUON}.{name}")
        if module is not None and compiled and getattr(module, "_plain", False):
            del sys.modules[f"{_MUON}.{name}"]
    if compiled or f"{_MUON}.muon_optimizer" in sys.modules:
        return
    with replaced(compiler, "compile", lambda *_: lambda function: function):
        for name in ("original_muon", "muon_optimizer"):
            importlib.import_module(f"{_MUON}.{name}").__dict__["_plain"] = True


class BuildLock(FileBaton):
    """The lock of an operation that torch compiles, without waiting for a process that is gone."""

    def __init__(self, lock_file_path: str, *, report: Callable[[str], None], **others: Any) -> None:
        super().__init__(lock_file_path, **others)
        self._path, self._report = Path(lock_file_path), report

    def try_acquire(self) -> bool:
        """Take the lock, also from a process that was killed while it compiled."""
        held = build_locks.take(self._path)
        if held is None and build_locks.remove_stale(self._path):
            self._report(f"removed {self._path}, which a compilation that was killed has left")
            held = build_locks.take(self._path)
        self.fd = held  # type: ignore[assignment]
        return held is not None

    def wait(self) -> None:
        """Until the other process has compiled.

        Raises:
            HardwareError: it was killed meanwhile.
        """
        began = looked = time.monotonic()
        reported = False
        while self._path.exists():
            time.sleep(self.wait_seconds)
            now = time.monotonic()
            if now - looked < _LOOK_SECONDS:
                continue
            looked = now
            if build_locks.remove_stale(self._path):
                raise HardwareError(
                    f"the process that compiled {self._path.parent.name} in {self._path.parent} was ended; what it "
                    "left was removed. Start the run again."
                )
            if not reported and now - began > REPORTED_SECONDS and (state := build_locks.look(self._path)) is not None:
                reported = True
                self._report(f"waits for {self._path.parent.name}: {build_locks.in_words(self._path, state)}")


def compile_beside_others(report: Callable[[str], None]) -> None:
    """Let no compilation of an operation wait for one that was killed, or for another without a word.

    torch's lock is a file that whoever compiles removes at its end. One that was killed leaves it, and every later
    process waits for it for ever and says nothing.

    Args:
        report: told what is waited for, and what was removed; the log of the rank has it as well.
    """

    def both(text: str) -> None:
        sys.stderr.write(f"{text}\n")
        report(text)

    cpp_extension.FileBaton = partial(BuildLock, report=both)  # type: ignore[attr-defined, assignment]


# Parameters.


def give_axes(model: nn.Module) -> None:
    """Parameters without axes, such as CLIP's temperature, get one of length 1; the export takes it away again.

    DeepSpeed sends tensors as bytes and clips gradients by a tensor of one element, neither of which goes without axes.
    """
    for parameter in model.parameters():
        _give_axis(parameter)


def _give_axis(parameter: nn.Parameter) -> None:
    if parameter.dim() == 0:
        parameter.data = parameter.data.reshape(1)


def keep_scalars_unpartitioned(model: nn.Module) -> None:
    """Under ZeRO-3 keep them where they are used, because contrastive losses multiply with one beside the model.

    DeepSpeed marks so what a module returns, and shares out again all the same what the optimizer made of it.
    """
    for parameter in model.parameters():
        if getattr(parameter, "ds_numel", 0) == 1:
            parameter.is_external_param = True  # type: ignore[attr-defined]


class Init(deepspeed.zero.Init):  # type: ignore[misc]
    """Partitions parameters as a constructor makes them; those without axes get one before."""

    def _zero_init_param(self, parameter: nn.Parameter) -> None:
        _give_axis(parameter)
        super()._zero_init_param(parameter)


def widen_buffers(model: nn.Module) -> None:
    """Give the buffers of a model that `Init` built room for fp32 again; what they hold is to be computed anew.

    zero.Init rounds every tensor of a constructor. Rotary frequencies of 8 bits put late positions off by whole turns,
    and are not those of the exported model.
    """
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.data.float()


# Half precision without ZeRO.


def undo_trial_step(engine: deepspeed.DeepSpeedEngine) -> None:
    """Start half-precision training without ZeRO from step 0.

    Without ZeRO, DeepSpeed allocates the optimizer's state by a trial step with zero gradients, which decays the master
    weights once and leaves Adam's step count at one: its bias correction is then wrong for the whole warm-up.
    """
    optimizer = engine.optimizer
    if isinstance(optimizer, FP16_UnfusedOptimizer):
        for master, low in zip(optimizer.fp32_groups, optimizer.fp16_groups, strict=True):
            for wide, narrow in zip(master, low, strict=True):
                wide.data.copy_(narrow.data)
        optimizer.optimizer.state.clear()


def backward(engine: deepspeed.DeepSpeedEngine, loss: torch.Tensor) -> None:
    """Accumulate the gradient of a scalar loss, without dividing it by the number of micro-batches.

    DeepSpeed scales the loss for its ZeRO optimizers only; without ZeRO in fp16 it would divide gradients by a loss
    scale that they were never multiplied with, until nothing but Adam's epsilon is left of them.
    """
    if isinstance(engine.optimizer, FP16_UnfusedOptimizer):
        loss = loss * engine.optimizer.loss_scale
    engine.backward(loss, scale_wrt_gas=False)


def gradient_norm_unit(engine: deepspeed.DeepSpeedEngine) -> float:
    """What the gradient norm of the coming step is to be divided by: without ZeRO it includes the loss scale."""
    return float(engine.optimizer.loss_scale) if isinstance(engine.optimizer, FP16_UnfusedOptimizer) else 1.0


def plain_gradient_norm(engine: deepspeed.DeepSpeedEngine) -> torch.Tensor | None:
    """The norm of the gradient, not clipped yet, of the coming update in fp32 without ZeRO, where DeepSpeed keeps none.

    None elsewhere, and between the micro-batches of a step. To be called after `backward`, which has averaged the
    gradients over the ranks.
    """
    others = engine.zero_optimization() or engine.bfloat16_enabled() or engine.fp16_enabled()
    if others or not engine.is_gradient_accumulation_boundary():
        return None
    gradients = [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
    return torch.nn.utils.get_total_norm(gradients) if gradients else None


# Checkpoints.


def leave_scripts_out(engine: deepspeed.DeepSpeedEngine) -> None:
    """Write checkpoints without the conversion scripts that DeepSpeed copies beside each, outside of any manifest."""
    engine._copy_recovery_script = lambda save_path: None


def consolidated(engine: deepspeed.DeepSpeedEngine) -> dict[str, Tensor]:
    """All weights under ZeRO-3, in the precision of the forward pass, on rank 0. All ranks call this.

    The public `save_16bit_model` gives them as a file alone.
    """
    return engine._zero3_consolidated_16bit_state_dict()  # type: ignore[no-any-return]


def reading_by(load: Callable[..., Any]) -> AbstractContextManager[None]:
    """Within it `torch.load` is `load`.

    DeepSpeed's converters read checkpoints with `weights_only=False`, which executes what a file says.
    """
    return replaced(torch, "load", load)
