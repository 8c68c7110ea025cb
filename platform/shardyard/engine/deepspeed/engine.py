"""Starting a DeepSpeed engine that shards a model. The only place that starts DeepSpeed."""

from __future__ import annotations

import contextlib
import logging
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import deepspeed
import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from transformers import PreTrainedConfig
from transformers.initialization import no_init_weights

from shardyard import freed_memory
from shardyard.engine.checkpoint.random_states import begin_random
from shardyard.engine.deepspeed import quirks
from shardyard.engine.deepspeed.batch_norm import normalise_in_fp32
from shardyard.engine.deepspeed.sharding import fill, shard
from shardyard.engine.mesh import Mesh
from shardyard.engine.offload.quirks import keep_in_checkpoints
from shardyard.engine.offload.start import in_folder, swap_folder
from shardyard.engine.parallel.quirks import use_groups
from shardyard.engine.world import ranks_here
from shardyard.hardware import usable_cores
from shardyard.models.adapters.adapters import attach, read_outside
from shardyard.models.adapters.saved import other_base
from shardyard.models.build import construct, construct_in_slices, construct_pretrained
from shardyard.models.compiled import compile_blocks, compiled_blocks, use_cache
from shardyard.models.frozen import DTYPES
from shardyard.models.initialise import initialise
from shardyard.models.kernels import use_liger
from shardyard.models.mlp_chunks import chunk_mlps
from shardyard.models.outside import OutsideModel
from shardyard.models.pretrained import Loaded, freeze
from shardyard.models.quirks import quiet_kernels
from shardyard.models.slices.quirks import WholeNeededError
from shardyard.models.vocabulary import Resized
from shardyard.objectives.registry import objective_spec
from shardyard.optim.groups import parameter_groups
from shardyard.optim.lion_adagrad import client_optimizer
from shardyard.planning.host_memory import read_whole
from shardyard.planning.plan import RunPlan
from shardyard.planning.reduction import accumulation_type
from shardyard.recipe.isolation import is_packed
from shardyard.recipe.precision import precision_of
from shardyard.recipe.schema import Adapter, Recipe
from shardyard.units import format_bytes


@freed_memory.returned()
def start_engine(
    recipe: Recipe,
    plan: RunPlan,
    config: PreTrainedConfig,
    mesh: Mesh,
    report: Callable[[str], None] = lambda text: None,
) -> deepspeed.DeepSpeedEngine:
    """Build, initialise and shard the model.

    Args:
        report: called with a message about missing or unused pretrained weights, and about compilations that wait.

    Raises:
        ModelError: the model cannot be built.
    """
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    quirks.compile_no_operation()
    quirks.compile_beside_others(report)
    quiet_kernels()
    quirks.import_muon(compiled=recipe.optimizer.name == "muon")
    # torch.distributed is already initialised; this only makes DeepSpeed use it.
    deepspeed.init_distributed(dist_backend=torch.distributed.get_backend(), auto_mpi_discovery=False, verbose=False)
    folder = swap_folder(recipe, plan, mesh, report)
    model = _build(recipe, plan, config, report)
    # Patterns refer to the custom module's own parameter names.
    freeze(model.module if isinstance(model, OutsideModel) else model, recipe.model.freeze)
    quirks.give_axes(model)
    if recipe.model.kernels == "liger":
        use_liger(model, recipe.model.label, mesh.device)
    if precision_of(recipe) != "fp32":
        normalise_in_fp32(model)
    if recipe.model.mlp_chunk:
        chunk_mlps(model, recipe.model.mlp_chunk)
    if recipe.model.compile and recipe.zero.stage == 3:
        quirks.gather_whole(compiled_blocks(model))
    groups = use_groups(mesh)
    engine, _, _, _ = deepspeed.initialize(
        model=model,
        mpu=groups,
        model_parameters=parameter_groups(model, recipe.optimizer.weight_decay, lr_of_b(recipe)),
        optimizer=None if "optimizer" in plan.deepspeed else client_optimizer(recipe.optimizer, mesh.device),
        config=plan.deepspeed if folder is None else in_folder(plan.deepspeed, folder.path),
        dist_init_required=False,
    )
    if folder is not None:
        keep_in_checkpoints(engine, folder)
    quirks.keep_scalars_unpartitioned(model)
    if recipe.model.adapter is not None and recipe.zero.stage == 3:
        _gather_what_is_read_outside(model)
    if recipe.model.compile and recipe.zero.stage == 3 and not all(one.requires_grad for one in model.parameters()):
        _give_inputs_gradients(model)
    quirks.undo_trial_step(engine)
    quirks.update_without_history(engine)
    if recipe.zero.stage == 0 and precision_of(recipe) != accumulation_type(recipe):
        quirks.accumulate_in_fp32(engine)
    if recipe.model.compile:
        _compile(recipe, model, report)
    # `from_pretrained` leaves models in evaluation mode, without dropout and activation checkpointing.
    model.train()
    # Ranks draw different dropout masks, unless they compute the same tokens. The weights above came from separate
    # generators.
    begin_random(recipe.train.seed + mesh.zero.index)
    return engine


def _compile(recipe: Recipe, model: Any, report: Callable[[str], None]) -> None:
    folder = use_cache(ranks_here=ranks_here(), cores=usable_cores())
    varying = objective_spec(recipe.objective).text and not is_packed(recipe)
    count = compile_blocks(model, recipe.model, varying=varying, gathered=recipe.zero.stage == 3)
    what = f"{count} blocks are compiled, equal ones once" if count else "the model has no repeated blocks: all of it"
    report(f"{what}, at the first steps; the code is kept in {folder}")


def _gather_what_is_read_outside(model: Any) -> None:
    """Make ZeRO-3 gather the parameters that layers with adapters read although other modules have them."""
    outside = list(read_outside(model))
    for module, parameters in outside:
        for parameter in parameters:
            deepspeed.zero.register_external_parameter(module, parameter)
    if outside:
        _give_inputs_gradients(model)


def _give_inputs_gradients(model: Any) -> None:
    """Under ZeRO-3, a module none of whose inputs needs a gradient, as after frozen embeddings, loses its parameters
    before their gradients are computed."""
    with contextlib.suppress(
        NotImplementedError, AttributeError
    ):  # a model without an embedding table, or a custom one
        model.enable_input_require_grads()


def lr_of_b(recipe: Recipe) -> float | None:
    """The learning rate of the B of adapters, if it is not that of all weights (LoRA+)."""
    adapter = recipe.model.adapter
    if adapter is None or adapter.loraplus_ratio is None:
        return None
    return recipe.optimizer.lr * adapter.loraplus_ratio


def _build(recipe: Recipe, plan: RunPlan, config: PreTrainedConfig, report: Callable[[str], None]) -> Any:
    if recipe.model.pretrained is not None:
        loaded = _pretrained(recipe, plan, config, report)
        for names, what in ((loaded.new, "starts from random values"), (loaded.unused, "is not used")):
            if names:
                report(
                    f"of {recipe.model.pretrained}: {textwrap.shorten(', '.join(names), 200, placeholder=' …')} {what}"
                )
        if loaded.resized is not None:
            report(_told(recipe, loaded.resized))
        if recipe.model.adapter is not None:
            _name_other_base(recipe.model.adapter, recipe.model.pretrained, report)
            attach(
                loaded.model,
                recipe.model.adapter,
                objective=recipe.objective,
                seed=recipe.train.seed,
                sources=loaded.sources,
            )
        if loaded.sources and recipe.zero.stage == 3:
            shard(loaded.model, loaded.sources, plan)
        elif loaded.sources:
            fill(loaded.model, loaded.sources, DTYPES[precision_of(recipe)])
        return loaded.model
    # AutoTP splits whole layers.
    whole = (
        recipe.zero.stage < 3
        or recipe.parallel.tensor > 1
        or (recipe.model.module is None and _reparametrised(recipe, config))
    )
    # Values that a family's rule leaves to the constructor must be the same on every rank.
    torch.manual_seed(recipe.train.seed)
    if recipe.model.module is not None:
        # A custom module has no initialisation rule per submodule: every rank builds it whole, DeepSpeed partitions it.
        return construct(recipe.model, config, recipe.objective)
    if whole:
        model = construct(recipe.model, config, recipe.objective)
        initialise(model, seed=recipe.train.seed, gathered=lambda _: contextlib.nullcontext())
        return model
    with quirks.Init(config_dict_or_path=plan.deepspeed), no_init_weights(), quirks.unwritten_as_nan():
        model = construct(recipe.model, config, recipe.objective)
    # Skipping the constructor's initialisation also skips tying the weights.
    model.tie_weights()
    quirks.widen_buffers(model)
    left = initialise(model, seed=recipe.train.seed, gathered=_gathered)
    if left:
        _as_constructed(model, left, recipe, config)
    return model


def _pretrained(recipe: Recipe, plan: RunPlan, config: PreTrainedConfig, report: Callable[[str], None]) -> Loaded:
    """The model with pretrained weights; without their values where each rank reads its own part, or all in 16 bits."""
    given, seed = (recipe.model, config, recipe.objective), recipe.train.seed
    reason, fp32 = read_whole(recipe), precision_of(recipe) == "fp32"
    if recipe.model.module is not None or (recipe.zero.stage < 3 and (fp32 or reason is not None)):
        return construct_pretrained(*given, seed=seed)
    try:
        if reason is not None:
            raise WholeNeededError(reason)
        return construct_in_slices(*given, seed=seed)
    except WholeNeededError as error:
        if recipe.zero.stage == 3:
            each = format_bytes(4 * plan.architecture.parameters)
            report(
                f"{recipe.model.pretrained} cannot be read in slices, because {error}: every rank loads all weights in "
                f"fp32, which takes {each} of host memory for each"
            )
        return construct_pretrained(*given, seed=seed)


def _name_other_base(adapter: Adapter, base: str, report: Callable[[str], None]) -> None:
    named = None if adapter.pretrained is None else other_base(adapter, base)
    if named is not None:
        report(
            f"the adapter in {adapter.pretrained} was trained on {named}, and model.pretrained is {base}: it fits only "
            "if these are the same weights"
        )


def _told(recipe: Recipe, resized: Resized) -> str:
    text = f"the embeddings of {recipe.model.pretrained} change from {resized.before} to {resized.after} rows"
    if resized.after < resized.before:
        return f"{text}; the last ones are left out"
    frozen = " and stay so; name the embeddings in model.adapter.modules_to_save to train them"
    return f"{text}; new ones begin as the mean of the others{'' if recipe.model.adapter is None else frozen}"


def _as_constructed(model: Any, names: Sequence[str], recipe: Recipe, config: PreTrainedConfig) -> None:
    """Copy the weights that the family's rule leaves to the constructor, from a model that every rank builds whole."""
    torch.manual_seed(recipe.train.seed)
    whole = construct(recipe.model, config, recipe.objective)
    for name in names:
        parameter = model.get_parameter(name)
        with _gathered([parameter]), torch.no_grad():
            parameter.copy_(whole.get_parameter(name).view_as(parameter))


def _reparametrised(recipe: Recipe, config: PreTrainedConfig) -> bool:
    """Whether the constructor computes with weights (weight normalisation, as in wav2vec2), so it needs them whole."""
    with torch.device("meta"), no_init_weights():
        model = construct(recipe.model, config, recipe.objective)
    return any(is_parametrized(module) for module in model.modules())


def _gathered(parameters: list[nn.Parameter]) -> contextlib.AbstractContextManager[object]:
    return deepspeed.zero.GatheredParameters(parameters, modifier_rank=0)  # type: ignore[no-any-return]


class LearningRate:
    """Sets the learning rate of every group to a factor of its peak."""

    def __init__(self, engine: deepspeed.DeepSpeedEngine) -> None:
        self._engine = engine
        self._peaks: list[float] = [group["lr"] for group in engine.optimizer.param_groups]

    def set(self, factor: float) -> float:
        """Scale all groups; returns the learning rate of the first."""
        for group, peak in zip(self._engine.optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * factor
        return self._peaks[0] * factor
