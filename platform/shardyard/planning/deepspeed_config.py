"""The DeepSpeed configuration that a recipe compiles to.

Every value is explicit: nothing is `auto`, and no DeepSpeed default affects a run. For the names, see
https://www.deepspeed.ai/docs/config-json/.
"""

from __future__ import annotations

from collections.abc import Callable

from shardyard.recipe.expert_presets import EXPERT_PRESETS
from shardyard.recipe.precision import precision_of
from shardyard.recipe.schema import Optimizer, Recipe, Zero


def deepspeed_config(recipe: Recipe, *, micro_batch: int, accumulation: int, gpu: bool) -> dict[str, object]:
    """Compile the whole dictionary.

    Args:
        recipe: the whole recipe.
        micro_batch: rows per forward pass of a rank.
        accumulation: micro-batches of a rank in one optimizer step; accumulation × micro-batch × data-parallel size is
            the global batch.
        gpu: whether ranks compute on GPUs; affects kernels and overlapping, never the mathematics.
    """
    compiled: dict[str, object] = {
        "train_batch_size": recipe.train.global_batch,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": recipe.train.gradient_clipping,
        "steps_per_print": None,
        "wall_clock_breakdown": False,
        "zero_optimization": _zero(recipe, gpu=gpu),
        # All optimizers work element-wise (Muon has separate code), so they can run on partitions of a flat buffer.
        "zero_allow_untested_optimizer": True,
        **_precision(recipe),
    }
    optimizer = _optimizer(recipe.optimizer, recipe.zero, gpu=gpu)
    if optimizer is not None:
        compiled["optimizer"] = optimizer
    if recipe.parallel.expert > 1:
        compiled["expert_parallel"] = _expert_parallel(recipe)
    return compiled


def _precision(recipe: Recipe) -> dict[str, object]:
    precision = precision_of(recipe)
    if precision == "bf16":
        bf16 = {"bf16": {"enabled": True, "check_grad_overflow": True}, "fp16": {"enabled": False}}
        # Sums of many micro-batches lose precision in bf16; stage 0 has no separate accumulator.
        return bf16 | {"data_types": {"grad_accum_dtype": "fp32" if recipe.zero.stage > 0 else "bf16"}}
    if precision == "fp16":
        fp16 = {
            "enabled": True,
            "loss_scale": 0,
            "initial_scale_power": recipe.train.initial_loss_scale,
            "loss_scale_window": 1000,
            "hysteresis": 2,
            "min_loss_scale": 1,
        }
        return {"fp16": fp16, "bf16": {"enabled": False}}
    return {"fp16": {"enabled": False}, "bf16": {"enabled": False}}


def _zero(recipe: Recipe, *, gpu: bool) -> dict[str, object]:
    zero = recipe.zero
    # Buckets are counted in elements of at most four bytes.
    bucket = max(1, zero.bucket_bytes // 4)
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
    if zero.offload_optimizer:
        compiled["offload_optimizer"] = {"device": "cpu", "pin_memory": gpu}
    if zero.offload_parameters:
        compiled["offload_param"] = {"device": "cpu", "pin_memory": gpu}
    if zero.stage == 3:
        compiled |= {
            "stage3_prefetch_bucket_size": bucket,
            "stage3_param_persistence_threshold": 100_000,
            "stage3_max_live_parameters": 1_000_000_000,
            "stage3_max_reuse_distance": 1_000_000_000,
            "stage3_gather_16bit_weights_on_model_save": True,
            "sub_group_size": 1_000_000_000,
        }
    return compiled


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
    """DeepSpeed's `optimizer` section; None for an optimizer of `optim/lion_adagrad.py`."""
    if optimizer.name in ("lion", "adagrad") and not zero.offload_optimizer:
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
