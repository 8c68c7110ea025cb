"""What people write without a platform: the model of gpt/quickstart under torchrun, DeepSpeed and nothing else.

Run by `start_time.py`. It trains on bytes of Python's documentation for a few steps and prints when each step ended.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pydoc_data.topics import topics

import deepspeed
import torch
from torch import distributed
from transformers import AutoModelForCausalLM, GPT2Config

STEPS = 3


def main() -> None:
    """Train; rank 0 prints the times of its steps."""
    shape = json.loads(sys.argv[1])
    distributed.init_process_group("gloo")
    rank, size = distributed.get_rank(), distributed.get_world_size()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(1234)
    model = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=shape["vocabulary"], **shape["config"]))
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    engine, _, _, _ = deepspeed.initialize(
        model=model, model_parameters=model.parameters(), config=shape["deepspeed"], dist_init_required=False
    )
    text = torch.tensor(list("\n".join(topics.values()).encode()))
    rows = text[: len(text) // shape["length"] * shape["length"]].view(-1, shape["length"])
    for step in range(STEPS):
        for part in range(shape["accumulation"]):
            first = ((step * shape["accumulation"] + part) * size + rank) * shape["micro_batch"]
            batch = rows[first : first + shape["micro_batch"]]
            engine.backward(engine(input_ids=batch, labels=batch).loss)
            engine.step()
        if rank == 0:
            sys.stdout.write(f"step {time.time()}\n")
            sys.stdout.flush()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
