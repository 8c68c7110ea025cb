"""Peak memory of ranks while pretrained weights are loaded at ZeRO stage 3 and exported, beside what they may need.

Writes a decoder of about `--parameters` weights in bf16, loads it on `--ranks` gloo ranks, and exports it. The bound is
a rank's share of all weights and one block: the larger of the largest layer and the largest weight outside of layers.
`support/memory/ranks.py` says what is measured.

    python tests/benchmarks/load_memory.py --parameters 1e9 --ranks 4
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.memory.ranks import make_job, measure
from support.ranks import run_ranks

SHARD_BYTES = 500 * 10**6
COLUMNS = ("share", "block", "bound", "load", "export")


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parameters", type=float, default=1e9)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16", help="of the weights in memory")
    parser.add_argument("--whole", action="store_true", help="also load every weight on every rank, as before")
    parser.add_argument("--folder", type=Path, help="where the model is written; default: a temporary folder")
    given = parser.parse_args()
    say = sys.stdout.write
    say(f"| way | {' | '.join(f'{name} MB' for name in COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}\n")
    with tempfile.TemporaryDirectory(dir=given.folder) as scratch:
        job = make_job(Path(scratch), given.parameters, given.ranks, given.precision)
        for whole in (False, True) if given.whole else (False,):
            found = run_ranks(given.ranks, measure, job, f"{scratch}/final-{whole}", whole, SHARD_BYTES)
            largest = [max(getattr(one, name) for one in found) / 1e6 for name in COLUMNS]
            say(f"| {'whole' if whole else 'slices'} | {' | '.join(f'{value:.0f}' for value in largest)} |\n")


if __name__ == "__main__":
    main()
