"""`make gpu-check`: what only a GPU can show, in parts of at most four minutes each, without network.

    python tests/gpu_check/run.py [--list] [--part NAME]… [--rehearse] [--json]

Parts that need neither Ray nor DeepSpeed run with torch alone, or with torch, transformers and pydantic, of any recent
version. Exit code 0: all parts that could be run passed; 1: one failed; 2: nothing could be run.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

# The sources, where Shardyard is not installed.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2] / "platform"), str(Path(__file__).parents[1])]
# Matrix products and reductions in the same order each time; read when CUDA starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import bare  # noqa: E402
import parts  # noqa: E402
import whole  # noqa: E402

ALL = (*bare.PARTS, *whole.PARTS)


def main(arguments: list[str] | None = None) -> int:
    """The exit code."""
    chosen = _parser().parse_args(arguments)
    if chosen.list:
        for part in ALL:
            needs = ", ".join(("torch", *part.needs))
            missing = f"  [not here: {', '.join(part.missing)}]" if part.missing else ""
            print(f"{part.name:12} {part.what} (needs {needs}){missing}")  # noqa: T201
        return 0
    setting = parts.Setting("cpu" if chosen.rehearse else "cuda")
    if not chosen.rehearse and not _has_gpu():
        sys.stderr.write(
            "gpu-check: torch sees no GPU here, so nothing was checked. Run it where `nvidia-smi` shows one, with a "
            "build of torch for it; --rehearse tries the script itself on the CPU.\n"
        )
        return 2
    run = parts.in_this_process if chosen.here else parts.in_a_process
    results = [run(part, setting) for part in ALL if not chosen.part or part.name in chosen.part]
    told = parts.as_json(setting, results) if chosen.json else parts.as_table(setting, results)
    print(told)  # noqa: T201
    if any(result.state == "failed" for result in results):
        return 1
    return 0 if any(result.state == "passed" for result in results) else 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gpu-check", description="Check Shardyard on a GPU.")
    parser.add_argument("--list", action="store_true", help="name the parts, and what each needs")
    parser.add_argument(
        "--part", action="append", choices=[part.name for part in ALL], help="only this one; repeatable"
    )
    parser.add_argument("--rehearse", action="store_true", help="run on the CPU at tiny size; figures mean nothing")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    parser.add_argument("--here", action="store_true", help="run in this process, without the time limit of a part")
    return parser


def _has_gpu() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return bool(torch.cuda.is_available())


if __name__ == "__main__":
    sys.exit(main())
