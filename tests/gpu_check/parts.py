"""What a part of the check is: what it needs, how it is run in a process of its own, and how its result is told."""

from __future__ import annotations

import importlib.util
import json
import os
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
STATES = Literal["passed", "failed", "not run"]


class Failed(Exception):  # noqa: N818  what a part has found
    """A part found something wrong; the message says what was measured and what it should be."""


@dataclass(frozen=True)
class Setting:
    """Where a part runs: on `cuda`, or in rehearsal on `cpu` at a size that takes seconds."""

    device: str

    @property
    def rehearses(self) -> bool:
        """Whether there is no GPU, and figures mean nothing."""
        return self.device == "cpu"


@dataclass(frozen=True)
class Part:
    """`run` gives figures by name, with units in the names. `needs` are modules beside torch."""

    name: str
    what: str
    needs: tuple[str, ...]
    run: Callable[[Setting], dict[str, Any]]

    @property
    def missing(self) -> list[str]:
        """Modules that are not installed here."""
        return [module for module in ("torch", *self.needs) if not _is_there(module)]


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
    if part.missing:
        return Result(part.name, "not run", message=f"needs {', '.join(part.missing)}, not installed here")
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


def in_a_process(part: Part, setting: Setting) -> Result:
    """Run a part in a fresh process, within the limit: nothing of it reaches the next one."""
    if part.missing:
        return in_this_process(part, setting)
    command = [sys.executable, str(Path(__file__).with_name("run.py")), "--part", part.name, "--json", "--here"]
    command += ["--rehearse"] if setting.rehearses else []
    started = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return Result(part.name, "failed", LIMIT_SECONDS, message=f"not done after {LIMIT_SECONDS} s")
    try:
        (found,) = json.loads(done.stdout.splitlines()[-1])["parts"]
    except (ValueError, IndexError, KeyError):
        sys.stderr.write(done.stderr[-4000:])
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return Result(part.name, "failed", time.monotonic() - started, message=f"exit {done.returncode}: {last}")
    if found["state"] == "failed":
        sys.stderr.write(done.stderr[-4000:])
    return Result(**found)


def hardware(setting: Setting) -> dict[str, Any]:
    """What the figures belong to."""
    import platform

    found: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "rehearsal": setting.rehearses,
    }
    if not _is_there("torch"):
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
    where = ", ".join(dict.fromkeys(about["gpus"])) if not setting.rehearses else "no GPU: a rehearsal on the CPU"
    lines = [f"{about['date']}  {where or 'no GPU'}  torch {about['torch']}  Python {about['python']}", ""]
    for result in results:
        figures = "  ".join(f"{name} {_figure(value)}" for name, value in result.figures.items())
        lines.append(f"{result.state:8} {result.name:12} {result.seconds:6.1f} s  {result.message or figures}")
    counts = {state: sum(result.state == state for result in results) for state in ("passed", "failed", "not run")}
    return "\n".join([*lines, "", ", ".join(f"{count} {state}" for state, count in counts.items() if count)])


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
