"""What it costs to hash the weights in each step (`cluster.replicas`): beside the time of a step of GPT-2 on one rank.

python tests/benchmarks/replica_hash.py [--layers 12] [--width 768] [--rows 8] [--length 512] [--device cpu]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import torch
from transformers import AutoModelForCausalLM, GPT2Config

from shardyard.engine.anomalies.content_hash import ContentHash


def seconds(work: Callable[[], object], device: torch.device, times: int) -> float:
    """The shortest time of `work` among several."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - began)
    return min(found)


def main() -> int:
    """Print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("--layers", 12), ("--width", 768), ("--rows", 8), ("--length", 512)):
        parser.add_argument(name, type=int, default=value)
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(chosen.device)
    config = GPT2Config(n_layer=chosen.layers, n_embd=chosen.width, n_head=chosen.width // 64, use_cache=False)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ids = torch.randint(0, config.vocab_size, (chosen.rows, chosen.length), device=device)
    weights = [one.data for one in model.parameters()]
    hashed = ContentHash(device)

    def step() -> None:
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    whole, alone = seconds(step, device, 4), seconds(lambda: hashed(weights), device, 8)
    size = sum(one.nbytes for one in weights)
    sys.stdout.write(
        f"{size / 2e6:.0f}M weights in bf16, {chosen.rows} rows of {chosen.length} on {device}: a step takes "
        f"{1e3 * whole:.1f} ms, the hash {1e3 * alone:.2f} ms ({size / alone / 1e9:.1f} GB/s): {alone / whole:.2%}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
