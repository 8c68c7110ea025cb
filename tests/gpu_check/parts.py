"""What a part of the check is: what it needs, how it is run in a process of its own, and how its result is told."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).parents[2]
# One part ends within this, so that a machine lent for minutes is enough for some of them.
LIMIT_SECONDS = 240
# Two cores may compile DeepSpeed's operations for minutes.
REHEARSAL_SECONDS = 900
STATES = Literal["passed", "failed", "not run"]


class Failed(Exception):  # noqa: N818  what a part has found
    """A part found something wrong; the message says what was measured and what it should be."""


@dataclass(frozen=True)
class Setting:
    """Where a part runs: on `cuda`, on simulated GPUs (`pretended`), or on `cpu`."""

    device: str
    pretended: int = 0

    @property
    def gpu(self) -> bool:
        """Whether the branches of a GPU are taken, be it a simulated one."""
        return self.device == "cuda"

    @property
    def rehearses(self) -> bool:
        """Whether there is no real GPU: sizes take seconds, and figures mean nothing."""
        return not self.gpu or self.pretended > 0

    @property
    def limit_seconds(self) -> int:
        """For one part."""
        return REHEARSAL_SECONDS if self.rehearses else LIMIT_SECONDS

    def precision(self, wanted: str) -> str:
        """fp32 in a rehearsal on the CPU, which need not have units for another one."""
        return wanted if self.gpu else "fp32"


@dataclass(frozen=True)
class Part:
    """`run` gives figures by name, with units in the names.

    needs: modules beside torch. gpus: how many it takes; a rehearsal on the CPU has none and runs only parts for one.
    kernels: why no simulated GPU can run it, though a CPU can; "" if one can.
    """

    name: str
    what: str
    needs: tuple[str, ...]
    run: Callable[[Setting], dict[str, Any]]
    gpus: int = 1
    kernels: str = ""

    @property
    def missing(self) -> list[str]:
        """Modules that are not installed here."""
        return [module for module in ("torch", *self.needs) if not is_there(module)]

    def hindrance(self, setting: Setting) -> str:
        """Why it cannot be run here; "" if it can."""
        if self.missing:
            return f"needs {', '.join(self.missing)}, not installed here"
        if self.kernels and setting.pretended:
            return f"needs a real GPU, or the CPU with --rehearse: {self.kernels}"
        if self.gpus > (here := _num_gpus(setting)):
            return f"needs {self.gpus} GPUs, and here {'is' if here == 1 else 'are'} {here or 'none'}"
        return ""


@dataclass(frozen=True)
class Result:
    """How a part ended."""

    name: str
    state: STATES
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)
    message: str = ""


def in_this_process(part: Part, setting: Setting) -> Result:
    """Run a part here; whatever it raises is its result."""
    if hindrance := part.hindrance(setting):
        return Result(part.name, "not run", message=hindrance)
    started = time.monotonic()
    try:
        figures, message, state = part.run(setting), "", "passed"
    except Failed as error:
        figures, message, state = {}, str(error), "failed"
    except Exception as error:  # noqa: BLE001  the table shows it, the traceback goes to stderr
        import traceback

        traceback.print_exc()
        text = str(error).strip().splitlines()
        figures, message, state = {}, f"{type(error).__name__}: {text[0] if text else ''}", "failed"
    return Result(part.name, state, time.monotonic() - started, figures, message)  # type: ignore[arg-type]


def in_a_process(part: Part, setting: Setting, limit_seconds: float) -> Result:
    """Run a part in a fresh process group, within a limit: nothing of it reaches the next one."""
    if part.hindrance(setting):
        return in_this_process(part, setting)
    command = [sys.executable, str(Path(__file__).with_name("run.py")), "--part", part.name, "--json", "--here"]
    if setting.pretended:
        command += ["--pretend", str(setting.pretended)]
    elif setting.rehearses:
        command += ["--rehearse"]
    started = time.monotonic()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        output, errors = process.communicate(timeout=limit_seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return Result(part.name, "failed", limit_seconds, message=f"not done after {limit_seconds:.0f} s")
    try:
        (found,) = json.loads(output.splitlines()[-1])["parts"]
    except (ValueError, IndexError, KeyError):
        sys.stderr.write(errors[-4000:])
        last = (errors.strip().splitlines() or ["no output"])[-1]
        return Result(part.name, "failed", time.monotonic() - started, message=f"exit {process.returncode}: {last}")
    if found["state"] == "failed":
        sys.stderr.write(errors[-4000:])
    return Result(**found)


def hardware(setting: Setting) -> dict[str, Any]:
    """What the figures belong to."""
    import platform

    found: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "rehearsal": setting.rehearses,
        "pretended": setting.pretended,
    }
    if not is_there("torch"):
        return found | {"torch": None, "gpus": []}
    import torch

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return found | {"torch": torch.__version__, "cuda": torch.version.cuda, "gpus": names}


def as_json(setting: Setting, results: list[Result]) -> str:
    """Everything on one line."""
    return json.dumps({**hardware(setting), "parts": [asdict(result) for result in results]})


def as_table(setting: Setting, results: list[Result]) -> str:
    """For people."""
    about = hardware(setting)
    where = ", ".join(f"{about['gpus'].count(name)} × {name}" for name in dict.fromkeys(about["gpus"]))
    if setting.pretended:
        where = f"no GPU: a rehearsal on simulated ones ({where}), whose figures mean nothing"
    elif setting.rehearses:
        where = "no GPU: a rehearsal on the CPU, whose figures mean nothing"
    lines = [f"{about['date']}  {where}  torch {about['torch']}  Python {about['python']}", ""]
    for result in results:
        figures = "  ".join(f"{name} {_figure(value)}" for name, value in result.figures.items())
        lines.append(f"{result.state:8} {result.name:14} {result.seconds:6.1f} s  {result.message or figures}")
    counts = {state: sum(result.state == state for result in results) for state in ("passed", "failed", "not run")}
    summary = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    seconds = sum(result.seconds for result in results)
    return "\n".join([*lines, "", f"{summary}; {seconds / 60:.1f} min"])


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _num_gpus(setting: Setting) -> int:
    if not setting.gpu:
        return 1  # a rehearsal on the CPU stands for one
    import torch

    return int(torch.cuda.device_count())


def is_there(module: str) -> bool:
    """Whether a module is installed."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
