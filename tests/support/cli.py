"""Running the command line like a user: a separate process, in a process group that a terminal could interrupt."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from ruamel.yaml import YAML

from shardyard.tracking.run.folder import read_metrics
from support.waiting import PATIENCE_SECONDS, until

COMMAND = [sys.executable, "-m", "shardyard.cli.main"]


def write_recipe(folder: Path, corpus: Path, **sections: Any) -> Path:
    """A tiny recipe for two workers as a file; `sections` are merged over it, one level deep."""
    base: dict[str, Any] = {
        "name": "tiny",
        "model": {
            "family": "gpt2",
            "config": {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 64},
            "dropout": 0.1,
        },
        "data": {"sequence_length": 32, "streams": 4, "train": [{"path": str(corpus), "holdout": 0.1}]},
        "train": {"steps": 30, "global_batch": 8, "seed": 7},
        "optimizer": {"name": "adamw", "lr": 3e-3, "weight_decay": 0.1},
        "schedule": {"name": "cosine", "warmup": 5},
        "zero": {"stage": 2},
        "checkpoint": {"every": 10},
        "evaluate": {"every": 10, "rows": 8},
        "sample": {"prompts": ["the model "], "max_new_tokens": 8},
        "tracking": {"wandb": {"mode": "disabled"}},
        "cluster": {"workers": 2},
    }
    for name, section in sections.items():
        base[name] = {**base.get(name, {}), **section} if isinstance(section, dict) else section
    path = folder / "tiny.yaml"
    with path.open("w") as file:
        YAML(typ="safe").dump(base, file)
    return path


class Command:
    """A running command line in its own process group; killed at the end of the `with` block if still running."""

    def __init__(
        self, *arguments: object, runs: Path, prefix: tuple[str, ...] = (), cwd: Path | None = None, **environment: str
    ) -> None:
        self.runs = runs
        self.process = subprocess.Popen(
            [*prefix, *COMMAND, *map(str, arguments), "--runs-dir", str(runs)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            cwd=cwd,
            env={**os.environ, **environment},
        )

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        for process in [*self.descendants(), psutil.Process()][:-1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def finish(self, timeout_seconds: float = PATIENCE_SECONDS) -> tuple[int, str]:
        """Exit code and output."""
        output, _ = self.process.communicate(timeout=timeout_seconds)
        return self.process.returncode, output

    def interrupt(self) -> None:
        """Send SIGINT to the whole group, like Ctrl-C in a terminal."""
        os.killpg(self.process.pid, signal.SIGINT)

    def descendants(self) -> list[psutil.Process]:
        """All descendants of the command."""
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Wait until `condition` holds; fails if the command ends before."""

        def holds() -> object:
            if found := condition():
                return found
            assert self.process.poll() is None, self.process.communicate()[0]
            return None

        until(holds, "what the command was to do")

    def wait_for_step(self, step: int) -> None:
        """Wait until this step is recorded."""
        self.wait_for(lambda: any(line["step"] >= step for line in self.metrics()))

    @property
    def folder(self) -> Path:
        """The only run folder."""
        (folder,) = self.runs.iterdir()
        return folder

    def metrics(self) -> list[dict[str, Any]]:
        """Metrics of each step so far."""
        files = list(self.runs.glob("*/metrics.jsonl"))
        return read_metrics(files[0]) if files else []

    def info(self) -> dict[str, Any]:
        """run.json."""
        info: dict[str, Any] = json.loads((self.folder / "run.json").read_text())
        return info

    def driver_log(self) -> str:
        """What the driver's libraries printed: where a driver that ends without a word may have said why."""
        return (self.folder / "logs" / "driver.log").read_text(errors="replace")[-4000:]

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Events of one kind."""
        return [event for event in _lines(self.folder / "events.jsonl") if event["kind"] == kind]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text().splitlines():
        with contextlib.suppress(ValueError):
            yield json.loads(line)
