"""From a model to a DeepSpeed engine that shards it. The one place that knows how DeepSpeed wants to be started."""

from __future__ import annotations

import contextlib
import importlib
import logging
import sys
import textwrap
from collections.abc import Callable
from unittest import mock

import deepspeed
import torch
from deepspeed.runtime import compiler
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from shardyard.engine.deepspeed.batch_norm import normalise_in_fp32
from shardyard.engine.world import Rank
from shardyard.models.adapters.adapters import attach
from shardyard.models.build import construct, construct_pretrained
from shardyard.models.initialise import initialise
from shardyard.models.pretrained import freeze
from shardyard.optim.groups import parameter_groups
from shardyard.optim.lion_adagrad import client_optimizer
from shardyard.planning.plan import RunPlan
from shardyard.recipe.precision import precision_of
from shardyard.recipe.schema import Recipe

_MUON = "deepspeed.runtime.zero.muon"


def start_engine(
    recipe: Recipe, plan: RunPlan, config: PreTrainedConfig, rank: Rank, tell: Callable[[str], None] = lambda text: None
) -> deepspeed.DeepSpeedEngine:
    """Build, initialise and shard the model.

    Args:
        tell: told what pretrained weights lacked, and what of them was left.

    Raises:
        ModelError: the model cannot be built.
    """
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed would compile a shared-memory all-reduce that only its inference uses: half a minute, and a compiler.
    # Only that reads this, so the other operations need no probing with a compiler either.
    deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}
    _import_muon(compiled=recipe.optimizer.name == "muon")
    # torch.distributed is up already; this only tells DeepSpeed to use it.
    deepspeed.init_distributed(dist_backend=torch.distributed.get_backend(), auto_mpi_discovery=False, verbose=False)
    model = _build(recipe, plan, config, tell)
    freeze(model, recipe.model.freeze)
    _give_axes(model)
    if precision_of(recipe) != "fp32":
        normalise_in_fp32(model)
    engine, _, _, _ = deepspeed.initialize(
        model=model,
        model_parameters=parameter_groups(model, recipe.optimizer.weight_decay),
        optimizer=None if "optimizer" in plan.deepspeed else client_optimizer(recipe.optimizer),
        config=plan.deepspeed,
        dist_init_required=False,
    )
    _keep_scalars_whole(model)
    _undo_trial_step(engine)
    if recipe.model.compile:
        engine.compile()
    # Ranks draw their own dropout masks; the weights above came from generators of their own.
    torch.manual_seed(recipe.train.seed + rank.rank)
    return engine


def _import_muon(*, compiled: bool) -> None:
    """DeepSpeed asks of every optimizer whether it is Muon, whose module imports torch's compiler to decorate three
    functions: two seconds that other optimizers spare."""
    for name in ("muon_optimizer", "original_muon"):
        module = sys.modules.get(f"{_MUON}.{name}")
        if module is not None and compiled and getattr(module, "_plain", False):
            del sys.modules[f"{_MUON}.{name}"]
    if compiled or f"{_MUON}.muon_optimizer" in sys.modules:
        return
    with mock.patch.object(compiler, "compile", return_value=lambda function: function):
        for name in ("original_muon", "muon_optimizer"):
            importlib.import_module(f"{_MUON}.{name}").__dict__["_plain"] = True


def _build(recipe: Recipe, plan: RunPlan, config: PreTrainedConfig, tell: Callable[[str], None]) -> PreTrainedModel:
    if recipe.model.pretrained is not None:
        loaded = construct_pretrained(recipe.model, config, recipe.objective, seed=recipe.train.seed)
        for names, what in ((loaded.new, "starts from random values"), (loaded.unused, "is not used")):
            if names:
                tell(
                    f"of {recipe.model.pretrained}: {textwrap.shorten(', '.join(names), 200, placeholder=' …')} {what}"
                )
        if recipe.model.adapter is not None:
            attach(loaded.model, recipe.model.adapter, objective=recipe.objective, seed=recipe.train.seed)
        return loaded.model
    # Whatever a family's own rule leaves to the constructor is the same on every rank.
    torch.manual_seed(recipe.train.seed)
    if recipe.zero.stage < 3:
        model = construct(recipe.model, config, recipe.objective)
        initialise(model, seed=recipe.train.seed, gathered=lambda _: contextlib.nullcontext())
        return model
    with _Init(config_dict_or_path=plan.deepspeed), no_init_weights():
        model = construct(recipe.model, config, recipe.objective)
    # Skipping the constructor's initialisation skips its tying too.
    model.tie_weights()
    # zero.Init rounds every tensor of a constructor. Rotary frequencies of 8 bits put late positions off by whole turns
    # and are not those of the exported model; the initialisation computes them anew, into buffers that can hold them.
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.data.float()
    initialise(model, seed=recipe.train.seed, gathered=_gathered)
    return model


def _give_axes(model: nn.Module) -> None:
    """Parameters without axes, such as CLIP's temperature, get one of length 1; the export takes it away again.

    DeepSpeed sends tensors as bytes and clips gradients by a tensor of one element, neither of which goes without axes.
    """
    for parameter in model.parameters():
        _give_axis(parameter)


def _give_axis(parameter: nn.Parameter) -> None:
    if parameter.dim() == 0:
        parameter.data = parameter.data.reshape(1)


def _keep_scalars_whole(model: nn.Module) -> None:
    """Under ZeRO-3 keep them where they are used, because contrastive losses multiply with one beside the model.

    DeepSpeed marks so what a module returns, and shares out again all the same what the optimizer made of it.
    """
    for parameter in model.parameters():
        if getattr(parameter, "ds_numel", 0) == 1:
            parameter.is_external_param = True  # type: ignore[attr-defined]


class _Init(deepspeed.zero.Init):  # type: ignore[misc]
    """Partitions parameters as a constructor makes them; those without axes get one before."""

    def _zero_init_param(self, parameter: nn.Parameter) -> None:
        _give_axis(parameter)
        super()._zero_init_param(parameter)


def _gathered(parameters: list[nn.Parameter]) -> contextlib.AbstractContextManager[object]:
    return deepspeed.zero.GatheredParameters(parameters, modifier_rank=0)  # type: ignore[no-any-return]


def _undo_trial_step(engine: deepspeed.DeepSpeedEngine) -> None:
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


class LearningRate:
    """Sets the learning rate of every group from a factor of its own peak."""

    def __init__(self, engine: deepspeed.DeepSpeedEngine) -> None:
        self._engine = engine
        self._peaks: list[float] = [group["lr"] for group in engine.optimizer.param_groups]

    def set(self, factor: float) -> float:
        """Scale all groups; returns the learning rate of the first."""
        for group, peak in zip(self._engine.optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * factor
        return self._peaks[0] * factor
