"""The DeepSpeed configuration that a recipe compiles to.

Every value is explicit: nothing is `auto`, and no DeepSpeed default affects a run. For the names, see
https://www.deepspeed.ai/docs/config-json/.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from shardyard.planning.offload import SWAP_BUFFERS, sub_group_size
from shardyard.planning.reduction import accumulation_type, bucket_elements, prefetch_elements
from shardyard.recipe.expert_presets import EXPERT_PRESETS
from shardyard.recipe.precision import precision_of
from shardyard.recipe.schema import Optimizer, Recipe, Zero
from shardyard.recipe.sections.eight_bits import EIGHT_BITS
from shardyard.recipe.tensor_plans import TENSOR_PLANS


def deepspeed_config(
    recipe: Recipe, *, micro_batch: int, accumulation: int, gpu: bool, parameters: int | None = None
) -> dict[str, object]:
    """Compile the whole dictionary.

    Args:
        recipe: the whole recipe.
        micro_batch: rows per forward pass of a rank.
        accumulation: micro-batches of a rank in one optimizer step; accumulation × micro-batch × data-parallel size is
            the global batch.
        gpu: whether ranks compute on GPUs; affects kernels and overlapping, never the mathematics.
        parameters: those that are trained; default buckets have no more.
    """
    compiled: dict[str, object] = {
        # DeepSpeed takes the ranks of a sequence for data-parallel ones.
        "train_batch_size": recipe.train.global_batch * recipe.parallel.sequence,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": recipe.train.gradient_clipping,
        "steps_per_print": None,
        # All ranks save under one tag and exchange what they wrote: DeepSpeed need not compare tags by collectives.
        "checkpoint": {"tag_validation": "Ignore"},
        "wall_clock_breakdown": False,
        "communication_data_type": recipe.zero.communication_data_type,
        "zero_optimization": _zero(recipe, micro_batch * accumulation, parameters, gpu=gpu),
        # All optimizers work element-wise (Muon has separate code), so they can run on partitions of a flat buffer.
        "zero_allow_untested_optimizer": True,
        **_precision(recipe),
    }
    optimizer = _optimizer(recipe.optimizer, recipe.zero, gpu=gpu)
    if optimizer is not None:
        compiled["optimizer"] = optimizer
    if recipe.zero.offload_optimizer == "nvme":
        compiled["aio"] = {
            "block_size": 1 << 20,
            "queue_depth": 8,
            "intra_op_parallelism": 1,
            "single_submit": False,
            "overlap_events": True,
            "use_gds": False,
        }
    if recipe.parallel.tensor > 1:
        compiled["tensor_parallel"] = _tensor_parallel(recipe)
    if recipe.parallel.expert > 1:
        compiled["expert_parallel"] = _expert_parallel(recipe)
    return compiled


def _precision(recipe: Recipe) -> dict[str, object]:
    precision = precision_of(recipe)
    if precision == "bf16":
        bf16 = {"bf16": {"enabled": True, "check_grad_overflow": True}, "fp16": {"enabled": False}}
        return bf16 | _accumulation(recipe)
    if precision == "fp16":
        fp16 = {
            "enabled": True,
            "loss_scale": 0,
            "initial_scale_power": recipe.train.initial_loss_scale,
            "loss_scale_window": 1000,
            "hysteresis": 2,
            "min_loss_scale": 1,
        }
        return {"fp16": fp16, "bf16": {"enabled": False}} | _accumulation(recipe)
    return {"fp16": {"enabled": False}, "bf16": {"enabled": False}}


def _accumulation(recipe: Recipe) -> dict[str, object]:
    # Without ZeRO DeepSpeed refuses another format than that of the weights: the engine then sets it on the parameters.
    return {
        "data_types": {"grad_accum_dtype": accumulation_type(recipe) if recipe.zero.stage else precision_of(recipe)}
    }


def _zero(recipe: Recipe, rank_rows: int, parameters: int | None, *, gpu: bool) -> dict[str, object]:
    zero, data_parallel = recipe.zero, recipe.train.global_batch // rank_rows
    bucket = bucket_elements(zero, data_parallel, parameters)
    compiled: dict[str, object] = {"stage": zero.stage}
    if zero.stage >= 1:
        compiled |= {
            "contiguous_gradients": True,
            # Muon needs whole gradients of its matrices.
            "reduce_scatter": recipe.optimizer.name != "muon",
            "reduce_bucket_size": bucket,
            "allgather_partitions": True,
            "allgather_bucket_size": bucket,
            # Overlapping needs streams; gloo on CPUs has none.
            "overlap_comm": gpu,
            "round_robin_gradients": False,
        }
    pinned = gpu if zero.pin_memory is None else zero.pin_memory
    if zero.offload_optimizer == "nvme":
        compiled["offload_optimizer"] = {
            "device": "nvme",
            "nvme_path": zero.nvme_path,
            "buffer_count": SWAP_BUFFERS,
            "pin_memory": pinned,
            "pipeline_read": False,
            "pipeline_write": False,
            "fast_init": False,
        }
    elif zero.offload_optimizer:
        compiled["offload_optimizer"] = {"device": "cpu", "pin_memory": pinned}
    if zero.offload_parameters:
        compiled["offload_param"] = {"device": "cpu", "pin_memory": pinned}
    if zero.stage == 3:
        compiled |= {
            "stage3_prefetch_bucket_size": prefetch_elements(zero, data_parallel, parameters),
            "stage3_param_persistence_threshold": zero.persistence_threshold,
            "stage3_max_live_parameters": zero.live_parameters,
            "stage3_max_reuse_distance": zero.live_parameters,
            "stage3_gather_16bit_weights_on_model_save": True,
            "sub_group_size": sub_group_size(zero),
        }
    if zero.hpz_partition_size > 1:
        compiled["zero_hpz_partition_size"] = zero.hpz_partition_size
    return compiled


def _tensor_parallel(recipe: Recipe) -> dict[str, object]:
    """AutoTP: the matrices of each layer are split over consecutive ranks; norms, embeddings and the head are whole."""
    plan = TENSOR_PLANS[recipe.model.family]
    kinds = (("column", plan.columns, False), ("row", plan.rows, False), ("skip", plan.summed, True))
    specs = [
        {
            "patterns": [rf".*\.{re.escape(name)}\.weight$" for name in names],
            "partition_type": kind,
            "grad_allreduce": summed,
        }
        for kind, names, summed in kinds
        if names
    ]
    return {
        "autotp_size": recipe.parallel.tensor,
        "tp_overlap_comm": False,
        "vocab_parallel_lm_head": False,
        "partition_config": {"use_default_specs": False, "layer_specs": specs},
    }


def _expert_parallel(recipe: Recipe) -> dict[str, object]:
    """AutoEP: the experts of each layer are spread over consecutive ranks, and tokens travel to them."""
    return {
        "enabled": True,
        "autoep_size": recipe.parallel.expert,
        "preset_model": EXPERT_PRESETS.get(recipe.model.family),
        # The objective does the load balancing, so that its loss is recorded.
        "load_balance_coeff": None,
    }


def _optimizer(optimizer: Optimizer, zero: Zero, *, gpu: bool) -> dict[str, object] | None:
    """DeepSpeed's `optimizer` section; None for an optimizer of `optim/`."""
    if optimizer.name in EIGHT_BITS or (optimizer.name in ("lion", "adagrad") and not zero.offload_optimizer):
        return None
    name, parameters = _OPTIMIZERS[optimizer.name](optimizer)
    parameters = {"lr": optimizer.lr, "weight_decay": optimizer.weight_decay, **parameters}
    if optimizer.name in ("adam", "adamw"):
        # torch's kernels need no compiler; offloading needs DeepSpeed's, which are compiled at first use.
        parameters |= {"torch_adam": not zero.offload_optimizer, "adam_w_mode": optimizer.name == "adamw"}
        if not zero.offload_optimizer:
            parameters["fused"] = True
    if optimizer.name == "muon":
        parameters |= {"torch_adam": True}
    return {"type": name, "params": parameters}


def _adam(o: Optimizer) -> tuple[str, dict[str, object]]:
    return "AdamW" if o.name == "adamw" else "Adam", {"betas": list(o.betas), "eps": o.eps}


_OPTIMIZERS: dict[str, Callable[[Optimizer], tuple[str, dict[str, object]]]] = {
    "adamw": _adam,
    "adam": _adam,
    "sgd": lambda o: ("SGD", {"momentum": o.momentum, "nesterov": o.nesterov}),
    "adagrad": lambda o: ("Adagrad", {"eps": o.eps}),
    "rmsprop": lambda o: ("RMSprop", {"alpha": o.alpha, "eps": o.eps, "momentum": o.momentum}),
    "lion": lambda o: ("Lion", {"betas": list(o.betas)}),
    "muon": lambda o: (
        "Muon",
        {"momentum": o.momentum, "betas": list(o.betas), "eps": o.eps, "muon_lr": o.lr, "adam_lr": o.aux_lr or o.lr},
    ),
}
