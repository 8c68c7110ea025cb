"""The opponent of `step_time.py`: a training loop as DeepSpeed's documentation writes it, and as fast as it gets.

It knows nothing of Shardyard. Model, tokens and turns are files that `step_time.py` has made; the rest is from
https://www.deepspeed.ai/getting-started/ and https://www.deepspeed.ai/docs/config-json/. Its batches lie in memory, it
logs nothing, reads no loss before the end and checks nothing; one thread a rank, and an environment in which the C
library keeps freed memory. Started by torchrun; rank r writes its times and losses to `bare-<r>.json`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import distributed, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM
from turns import Turns


def configuration(task: dict[str, Any]) -> dict[str, Any]:
    """A configuration file of DeepSpeed's, with the settings that help on CPUs."""
    found: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": task["micro_batch"],
        "gradient_accumulation_steps": task["accumulation"],
        "gradient_clipping": task["gradient_clipping"],
        "communication_data_type": task["communication"],
        "steps_per_print": None,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": task["stage"],
            "contiguous_gradients": True,
            # Communication is no work of another device here, so nothing is gained by overlapping it.
            "overlap_comm": False,
            "reduce_bucket_size": 50_000_000,
            "allgather_bucket_size": 50_000_000,
        },
    }
    if task["precision"] == "bf16":
        found |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    if task["stage"] == 3:
        found["zero_optimization"] |= {
            # All of a model of this size may be gathered at once and stay, which saves gathering it twice a step.
            "stage3_prefetch_bucket_size": 50_000_000,
            "stage3_param_persistence_threshold": 100_000,
            "stage3_max_live_parameters": 1_000_000_000,
            "stage3_max_reuse_distance": 1_000_000_000,
        }
    return found


def optimizer_of(model: nn.Module, task: dict[str, Any]) -> torch.optim.Optimizer:
    """AdamW in one pass over all parameters; norms and biases are not decayed."""
    matrices = [one for one in model.parameters() if one.dim() >= 2]
    others = [one for one in model.parameters() if one.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": task["weight_decay"]},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=task["lr"], betas=tuple(task["betas"]), eps=task["eps"], fused=True)


def main() -> None:
    """Train through all steps."""
    folder = Path(sys.argv[1])
    task = json.loads((folder / "task.json").read_text())
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    # An operation that only inference uses would be compiled for half a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    model.train()
    engine, _, _, _ = deepspeed.initialize(
        model=model, optimizer=optimizer_of(model, task), config=configuration(task), dist_init_required=False
    )
    batches = torch.load(folder / f"batches-{rank}.pt")
    seconds, losses = train(
        engine, batches, task["micro_batch"], Turns(folder, "bare", rank, task["block"], task["arms"])
    )
    (folder / f"bare-{rank}.json").write_text(json.dumps({"seconds": seconds, "losses": losses}))
    distributed.barrier()
    os._exit(0)


def train(
    engine: Any, batches: list[tuple[torch.Tensor, ...]], micro_batch: int, turns: Turns
) -> tuple[list[float], list[float]]:
    """Seconds and loss of each step."""
    # Whatever can be done before the clock runs: batches are cut into micro-batches.
    cut = [list(zip(*(tensor.split(micro_batch) for tensor in batch), strict=True)) for batch in batches]
    turns.begin()
    seconds, losses = [], []
    for step, parts in enumerate(cut, 1):
        before = time.perf_counter()
        found = []
        for input_ids, labels, position_ids in parts:
            logits = engine(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits
            loss = functional.cross_entropy(logits.float().view(-1, logits.size(-1)), labels.view(-1))
            engine.backward(loss)
            engine.step()
            found.append(loss.detach())
        seconds.append(time.perf_counter() - before)
        losses.append(found)
        turns.after(step)
    return seconds, [float(torch.stack(parts).mean()) for parts in losses]


if __name__ == "__main__":
    main()
