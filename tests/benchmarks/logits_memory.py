"""Peak memory and time of output layer and loss, with all logits at once and some tokens at a time.

Each arm is a process of its own: hidden states of one row, a matrix of the vocabulary, loss and backward pass. Memory
is what it adds to that of the imports, hidden states and matrix.

    python tests/benchmarks/logits_memory.py --vocabulary 131072 --tokens 8192
    python tests/benchmarks/logits_memory.py --vocabulary 32768 --tokens 4096 --z-loss
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import torch
from torch import nn

from shardyard.objectives import losses
from shardyard.objectives.chunked import ChunkedLogits
from shardyard.objectives.z_loss import token_losses

CHUNKS = (0, 4096, 1024, 256)


def measure(vocabulary: int, tokens: int, width: int, chunk: int, z_loss: float) -> tuple[float, float]:
    """MB of memory and seconds."""
    layer = nn.Linear(width, vocabulary, bias=False, dtype=torch.bfloat16)
    hidden = torch.randn(1, tokens, width, dtype=torch.bfloat16, requires_grad=True)
    labels = torch.randint(0, vocabulary, (1, tokens))
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    logits = ChunkedLogits(layer, hidden, lambda part: part, chunk) if chunk else layer(hidden)
    found = token_losses(losses.cross_entropy, logits, labels, z_loss=z_loss, training=True)
    sum(found.values(), torch.zeros(())).backward()
    seconds = time.perf_counter() - begin
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, seconds


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocabulary", type=int, default=131072)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--z-loss", action="store_true")
    parser.add_argument("--arm", type=int)
    given = parser.parse_args()
    if given.arm is not None:
        sys.stdout.write(json.dumps(measure(given.vocabulary, given.tokens, given.width, given.arm, given.z_loss)))
        return
    sys.stdout.write("| tokens at a time | MB | seconds |\n|---|---|---|\n")
    for chunk in CHUNKS:
        command = [sys.executable, __file__, "--arm", str(chunk), *(["--z-loss"] if given.z_loss else [])]
        for name in ("vocabulary", "tokens", "width"):
            command += [f"--{name}", str(getattr(given, name))]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        megabytes, seconds = json.loads(found.splitlines()[-1])
        sys.stdout.write(f"| {chunk or 'all'} | {megabytes:.0f} | {seconds:.1f} |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
