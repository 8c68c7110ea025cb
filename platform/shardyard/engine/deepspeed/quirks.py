"""Workarounds for DeepSpeed, and its private names; tests show when each is no longer needed.

Needed for DeepSpeed 0.19.8, and for torch 2.13, which compiles its operations; pyproject.toml pins both.
`tests/unit/engine/test_deepspeed_quirks.py` and `test_build_locks.py` fail if a newer version no longer needs one of
them.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam
from deepspeed.runtime import compiler
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.utils import set_z3_leaf_module
from torch import Tensor, nn
from torch.utils import cpp_extension
from torch.utils.file_baton import FileBaton

from shardyard.engine.deepspeed import build_locks
from shardyard.engine.mesh import Mesh
from shardyard.engine.parallel.tensor import gradient_norm
from shardyard.errors import HardwareError
from shardyard.replaced import replaced

_MUON = "deepspeed.runtime.zero.muon"
# Another rank or run usually compiles for a minute or two; longer waits are reported.
REPORTED_SECONDS = 20.0
_LOOK_SECONDS = 2.0


# Starting.


def compile_no_operation() -> None:
    """Keep DeepSpeed from compiling a shared-memory all-reduce that only its inference uses.

    Compiling it takes half a minute and needs a compiler. Nothing else reads this table, so probing the other
    operations with a compiler is unnecessary as well.
    """
    deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}


def gather_whole(modules: Sequence[nn.Module]) -> None:
    """Make ZeRO-3 gather the weights of each of these modules together, by hooks of it alone: hooks of the modules in
    it would interrupt the code that torch compiles of it."""
    for module in modules:
        set_z3_leaf_module(module, True)


def import_muon(*, compiled: bool) -> None:
    """Import DeepSpeed's Muon, without torch's compiler if the run uses another optimizer.

    DeepSpeed checks for every optimizer whether it is Muon. Muon's modules import the compiler to decorate three
    functions, which adds two seconds to every start.
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
    """The lock of an operation that torch compiles; does not wait for a process that is gone."""

    def __init__(self, lock_file_path: str, *, report: Callable[[str], None], **others: Any) -> None:
        super().__init__(lock_file_path, **others)
        self._path, self._report = Path(lock_file_path), report

    def try_acquire(self) -> bool:
        """Take the lock, even from a process that was killed while compiling."""
        held = build_locks.take(self._path)
        if held is None and build_locks.remove_stale(self._path):
            self._report(f"removed {self._path}, which a compilation that was killed has left")
            held = build_locks.take(self._path)
        self.fd = held  # type: ignore[assignment]
        return held is not None

    def wait(self) -> None:
        """Wait until the other process has finished compiling.

        Raises:
            HardwareError: the other process was killed in the meantime.
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
    """Keep compilations of operations from waiting for a killed process, and from waiting silently for a live one.

    torch's lock is a file that the compiling process removes at the end. A killed process leaves it behind, and every
    later process waits for it forever, without a message.

    Args:
        report: called with a message about each wait and each removed lock; the rank's log contains it as well.
    """

    def both(text: str) -> None:
        sys.stderr.write(f"{text}\n")
        report(text)

    cpp_extension.FileBaton = partial(BuildLock, report=both)  # type: ignore[attr-defined, assignment]


# Parameters.


def give_axes(model: nn.Module) -> None:
    """Give parameters without axes, such as CLIP's temperature, an axis of length 1; the export removes it again.

    DeepSpeed sends tensors as bytes and clips gradients by a tensor of one element; neither works without an axis.
    """
    for parameter in model.parameters():
        _give_axis(parameter)


def _give_axis(parameter: nn.Parameter) -> None:
    if parameter.dim() == 0:
        parameter.data = parameter.data.reshape(1)


def keep_scalars_unpartitioned(model: nn.Module) -> None:
    """Under ZeRO-3, keep scalars gathered after the forward pass, because contrastive losses use one outside the model.

    DeepSpeed sets the same flag on parameters that a module returns, and still distributes the optimizer's updates.
    """
    for parameter in model.parameters():
        if getattr(parameter, "ds_numel", 0) == 1:
            parameter.is_external_param = True  # type: ignore[attr-defined]


def with_values(sized: Callable[..., Tensor], plain: Callable[..., Tensor]) -> Any:
    """A constructor of tensors: DeepSpeed's `sized` for sizes, the `plain` one of torch for values."""

    def new_tensor(cls: type[Tensor], *given: Any, **options: Any) -> Tensor:
        sizes = all(isinstance(one, int | torch.Size) for one in given)
        return sized(cls, *given, **options) if sizes else plain(cls, *given, **options)

    return new_tensor


class Init(deepspeed.zero.Init):  # type: ignore[misc]
    """Partitions parameters as a constructor creates them; parameters without axes get one first.

    DeepSpeed takes the argument of `torch.Tensor(…)` for a size, even a list or an array of values: rates of stochastic
    depth became memory that nothing had written.
    """

    def __enter__(self) -> None:
        plain = torch.Tensor.__new__
        super().__enter__()
        if self.enabled:
            torch.Tensor.__new__ = with_values(torch.Tensor.__new__, plain)  # type: ignore[method-assign]

    def _zero_init_param(self, parameter: nn.Parameter) -> None:
        _give_axis(parameter)
        super()._zero_init_param(parameter)

    def partition(self, parameter: Any, part: Callable[[int, int, torch.dtype], Tensor]) -> None:
        """Partition a parameter; each rank reads its own elements alone, and none are sent.

        Args:
            parameter: has the shape; its values are not looked at.
            part: the elements from one index to another of the flattened parameter, in a precision.
        """
        dtype = self.dtype if parameter.is_floating_point() else parameter.dtype
        # Only memory that is written is taken from the host.
        parameter.data = torch.empty(parameter.shape or (1,), dtype=dtype, device=self.local_device)
        self._convert_to_deepspeed_param(parameter)
        start, stop = 0, parameter.ds_numel
        if self.zero_param_process_group is None:  # else a node holds all of it once more
            size = self._aligned_size(parameter) // self._partition_world_size(parameter)
            start = min(stop, size * self._partition_rank(parameter))
            stop = min(stop, start + size)
        if start < stop:
            with torch.no_grad():
                parameter.view(-1)[start:stop] = part(start, stop, dtype).to(self.local_device)
        parameter.partition()


@contextmanager
def unwritten_as_nan() -> Iterator[None]:
    """Fill memory that `torch.empty` allocates with NaN, which shows what a constructor has left unwritten."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        # The switch is a property of a module, which type checkers do not see.
        with replaced(torch.utils.deterministic, "fill_uninitialized_memory", True):
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def widen_buffers(model: nn.Module) -> None:
    """Convert the buffers of a model that `Init` built back to fp32; their values must then be recomputed.

    zero.Init rounds every tensor that a constructor creates. Rotary frequencies with 8 significant bits shift late
    positions by whole turns and differ from those of the exported model.
    """
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.data.float()


# Half precision without ZeRO.


def undo_trial_step(engine: deepspeed.DeepSpeedEngine) -> None:
    """Start half-precision training without ZeRO from step 0.

    Without ZeRO, DeepSpeed allocates the optimizer state with a trial step on zero gradients, which decays the master
    weights once and sets Adam's step count to one: the bias correction is then wrong for the whole warm-up.
    """
    optimizer = engine.optimizer
    if isinstance(optimizer, FP16_UnfusedOptimizer):
        for master, low in zip(optimizer.fp32_groups, optimizer.fp16_groups, strict=True):
            for wide, narrow in zip(master, low, strict=True):
                wide.data.copy_(narrow.data)
        optimizer.optimizer.state.clear()


def update_without_history(engine: deepspeed.DeepSpeedEngine) -> None:
    """Make DeepSpeed's Adam for CPUs correct its bias by the number of the step alone.

    It multiplies the powers of its betas from step to step, and computes them anew after a resume: other last bits. It
    computes them anew after any step that is not the one before, here of a number that nothing depends on.
    """
    adam = engine.optimizer.optimizer if engine.zero_optimization_stage() else None
    if not isinstance(adam, DeepSpeedCPUAdam):
        return
    plain = adam.step

    def step(closure: Callable[[], Any] | None = None) -> Any:
        done = max((state["step"] for state in adam.state.values() if "step" in state), default=0)
        blank = [torch.zeros(1) for _ in range(4)]
        betas = adam.param_groups[0]["betas"]
        adam.ds_opt_adam.adam_update(adam.opt_id, done + 3, 0.0, *betas, 1.0, 0.0, True, *blank)
        return plain(closure)

    adam.step = step


def accumulate_in_fp32(engine: deepspeed.DeepSpeedEngine) -> None:
    """Add up, reduce and keep the gradients of 16-bit parameters in fp32 where there is no ZeRO.

    DeepSpeed refuses `grad_accum_dtype` there, and gives parameters that a step has not reached zeros in the format of
    the parameter, which torch does not take for gradients of another one.
    """
    parameters = [one for one in engine.module.parameters() if one.requires_grad and one.numel()]
    for parameter in parameters:
        parameter.grad_dtype = torch.float32
    reduced = engine._get_gradients_for_reduction

    def complete() -> Any:
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter, dtype=torch.float32)
        return reduced()

    engine._get_gradients_for_reduction = complete


def backward(engine: deepspeed.DeepSpeedEngine, loss: torch.Tensor) -> None:
    """Accumulate the gradient of a scalar loss, without dividing it by the number of micro-batches.

    DeepSpeed scales the loss only for its ZeRO optimizers; in fp16 without ZeRO it would divide the gradients by a loss
    scale that they were never multiplied with, so that they become negligible compared with Adam's epsilon.
    """
    if isinstance(engine.optimizer, FP16_UnfusedOptimizer):
        loss = loss * engine.optimizer.loss_scale
    engine.backward(loss, scale_wrt_gas=False)


def gradient_norm_unit(engine: deepspeed.DeepSpeedEngine) -> float:
    """The divisor for the gradient norm of the next step, which without ZeRO includes the loss scale."""
    return float(engine.optimizer.loss_scale) if isinstance(engine.optimizer, FP16_UnfusedOptimizer) else 1.0


def plain_gradient_norm(engine: deepspeed.DeepSpeedEngine, mesh: Mesh) -> torch.Tensor | None:
    """The gradient norm of the next update before clipping, in fp32 without ZeRO, where DeepSpeed does not keep it.

    None in all other cases, and between the micro-batches of a step. Call it after `backward`, which averages the
    gradients over the ranks.
    """
    others = engine.zero_optimization() or engine.bfloat16_enabled() or engine.fp16_enabled()
    if others or not engine.is_gradient_accumulation_boundary():
        return None
    if mesh.tensor.size > 1:
        return gradient_norm(engine.module, mesh.tensor)
    gradients = [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
    return torch.nn.utils.get_total_norm(gradients) if gradients else None


# Checkpoints.


def leave_scripts_out(engine: deepspeed.DeepSpeedEngine) -> None:
    """Write checkpoints without the conversion scripts that DeepSpeed adds to each and that no manifest lists."""
    engine._copy_recovery_script = lambda save_path: None


def release_parameters(engine: deepspeed.DeepSpeedEngine) -> None:
    """Partition under ZeRO-3 the parameters that the last pass has left whole, so that they can be gathered anew.

    DeepSpeed does so before its own checkpoints. All ranks call this.
    """
    if engine.zero_optimization_stage() == 3:
        engine.optimizer.checkpoint_event_prologue()


@contextmanager
def kept_whole(engine: deepspeed.DeepSpeedEngine) -> Iterator[None]:
    """Context in which every rank has the whole model under ZeRO-3, so that forward passes need no other rank.

    DeepSpeed's context of gathered parameters alone does not do it: the first pass partitions them again, unless they
    bear the mark of parameters that other modules use.
    """
    release_parameters(engine)
    parameters = [one for one in engine.module.parameters() if hasattr(one, "ds_id")]
    marks = [one.is_external_param for one in parameters]
    with deepspeed.zero.GatheredParameters(parameters):
        for parameter in parameters:
            parameter.is_external_param = True
        try:
            yield
        finally:
            for parameter, mark in zip(parameters, marks, strict=True):
                parameter.is_external_param = mark
                parameter.ds_active_sub_modules.clear()
    engine.optimizer.checkpoint_event_epilogue()


def reading_by(load: Callable[..., Any]) -> AbstractContextManager[None]:
    """Context in which `torch.load` is `load`.

    DeepSpeed's converters read checkpoints with `weights_only=False`, which executes code in the file.
    """
    return replaced(torch, "load", load)
