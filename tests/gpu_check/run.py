"""`make gpu-check`: what only a GPU can show, in parts of at most four minutes each, without network.

    python tests/gpu_check/run.py [--list] [--part NAME]… [--minutes M] [--pretend GPUS | --rehearse] [--json]

Parts that need neither Ray nor DeepSpeed run with torch alone, or with torch, transformers and pydantic, of any recent
version. Exit code 0: all parts that could be run passed; 1: one failed; 2: nothing could be run.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

# The sources, where Shardyard is not installed.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2] / "platform"), str(Path(__file__).parents[1])]
# Matrix products and reductions in the same order each time; read when CUDA starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import bare  # noqa: E402
import large  # noqa: E402
import parts  # noqa: E402
import whole  # noqa: E402

# Speed first, because a lent machine may not last for everything.
ALL = (*bare.PARTS, *large.SPEED, *whole.PARTS, *large.PARTS)
# A part that has less than this is not begun.
_LEAST_SECONDS = 20


def main(arguments: list[str] | None = None) -> int:
    """The exit code."""
    chosen = _parser().parse_args(arguments)
    if chosen.list:
        for part in ALL:
            needs = ", ".join(("torch", *part.needs, *([f"{part.gpus} GPUs"] if part.gpus > 1 else [])))
            missing = f"  [not here: {', '.join(part.missing)}]" if part.missing else ""
            print(f"{part.name:14} {part.what} (needs {needs}){missing}")  # noqa: T201
        return 0
    if chosen.pretend and os.environ.get("REHEARSAL_GPUS") != str(chosen.pretend):
        _begin_again(chosen.pretend)
    setting = parts.Setting("cpu" if chosen.rehearse else "cuda", pretended=chosen.pretend or 0)
    if not chosen.rehearse and not _has_gpu():
        sys.stderr.write(
            "gpu-check: torch sees no GPU here, so nothing was checked. Run it where `nvidia-smi` shows one, with a "
            "build of torch for it; --pretend 2 runs the parts on simulated GPUs.\n"
        )
        return 2
    results = []
    minutes = chosen.minutes or (60 if setting.rehearses else 15)
    end = time.monotonic() + 60 * minutes
    for part in ALL:
        if chosen.part and part.name not in chosen.part:
            continue
        left = end - time.monotonic()
        if chosen.here:
            results.append(parts.in_this_process(part, setting))
        elif left < _LEAST_SECONDS:
            results.append(parts.Result(part.name, "not run", message=f"the {minutes:g} minutes are over"))
        else:
            results.append(parts.in_a_process(part, setting, min(setting.limit_seconds, left)))
        if not chosen.json and not chosen.here:
            sys.stderr.write(f"{results[-1].state:8} {part.name}\n")
    told = parts.as_json(setting, results) if chosen.json else parts.as_table(setting, results)
    print(told)  # noqa: T201
    if any(result.state == "failed" for result in results):
        return 1
    return 0 if any(result.state == "passed" for result in results) else 2


def _begin_again(gpus: int) -> None:
    """This command in a process that sees simulated GPUs; does not return."""
    from support.rehearsal import environment

    # Simulated GPUs are hidden as real ones are.
    inherited = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    os.execve(sys.executable, [sys.executable, *sys.argv], {**inherited, **environment(gpus)})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gpu-check", description="Check Shardyard on a GPU.")
    parser.add_argument("--list", action="store_true", help="name the parts, and what each needs")
    parser.add_argument(
        "--part", action="append", choices=[part.name for part in ALL], help="only this one; repeatable"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        help="the time for all parts (15; 60 without a real GPU); those that do not fit are not run",
    )
    parser.add_argument(
        "--pretend", type=int, metavar="GPUS", help="run on simulated GPUs at tiny size; figures mean nothing"
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
