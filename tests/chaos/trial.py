"""One run with faults in a box of its own, and what is measured of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from chaos.box import Box, box
from support.cli import Command, write_recipe
from support.tiny import write_corpus
from support.waiting import PATIENCE_SECONDS

STEPS = 40
EVERY = 10
# Faults happen in a step between two checkpoints.
AT = 25
# Events of what a run finds in its numbers.
FOUND = ("anomaly", "replicas_differ")


@dataclass(frozen=True)
class Fault:
    """A fault within a rank, see `inject/sitecustomize.py`. `name`: of its marker; `times`: how often it happens."""

    place: str
    act: str
    rank: int = 1
    step: int = AT
    times: int = 1
    exact: bool = False
    name: str = "fault"

    def as_json(self, folder: Path) -> dict[str, object]:
        """As the processes of the run read it."""
        fields = {key: value for key, value in asdict(self).items() if key != "name"}
        return {**fields, "marker": str(folder / "marks" / self.name)}


@dataclass(frozen=True)
class State:
    """What a run ended with: the bytes of its weights, and the rows and loss of each step."""

    weights: dict[str, str]
    rows: dict[int, list[str]]
    losses: dict[int, float]

    def differs(self, other: State, tolerance: float = 0.0) -> str:
        """What is not equal; "" if all is. With a tolerance only losses, within it, and rows count."""
        if self.rows != other.rows:
            steps = [step for step in other.rows if self.rows.get(step) != other.rows[step]]
            return f"rows differ in {len(steps)} steps from {min(steps, default=0)} on"
        if tolerance:
            worst = max(abs(self.losses.get(step, 1e9) - loss) for step, loss in other.losses.items())
            return "" if worst <= tolerance else f"losses differ by {worst:.1e}"
        # A batch that is skipped once its loss is known has one, and a step that is passed over has none.
        if {step: self.losses.get(step) for step in other.losses} != other.losses:
            return "losses differ"
        return "" if self.weights == other.weights else "weights differ"


@dataclass
class Trial:
    """A run in a box. `faults` are those of its next command; `code` and `output` those of commands that ended."""

    box: Box
    recipe: Path
    faults: Sequence[Fault] = ()
    variables: dict[str, str] = field(default_factory=dict)
    output: list[str] = field(default_factory=list)
    code: int = 0
    patience_seconds: float = PATIENCE_SECONDS

    @property
    def runs(self) -> Path:
        """The runs folder."""
        return self.box.folder / "runs"

    def start(self, *arguments: object, **variables: str) -> Command:
        """Start a command; the caller enters it."""
        faults = json.dumps([fault.as_json(self.box.folder) for fault in self.faults])
        environment = self.box.environment(CHAOS_FAULTS=faults, **{**self.variables, **variables})
        return Command(*arguments, runs=self.runs, prefix=self.box.prefix, cwd=self.box.folder, **environment)

    def run(self, *arguments: object, **variables: str) -> int:
        """Run a command to its end; returns its exit code."""
        with self.start(*arguments, **variables) as command:
            code, output = command.finish(self.patience_seconds)
        self.output.append(output)
        return code

    @property
    def folder(self) -> Path:
        """The only run folder."""
        (found,) = (path for path in self.runs.iterdir() if (path / "run.json").exists())
        return found

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The whole lines of a JSONL file of the run."""
        found = []
        for text in (self.folder / name).read_text().splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(text))
        return found

    def lines_of_info(self) -> dict[str, Any]:
        """run.json."""
        found: dict[str, Any] = json.loads((self.folder / "run.json").read_text())
        return found

    def fault_time(self, name: str = "fault") -> float | None:
        """When a fault happened first; None if it has not."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            return float(json.loads((self.box.folder / "marks" / f"{name}.0").read_text())["time"])
        return None

    def pause(self, step: int = 30) -> None:
        """Train to a step that has a checkpoint, and kill the command."""
        with contextlib.suppress(AssertionError), self.held("launch", self.recipe, step=step + 1) as command:
            command.process.kill()
        self.box.clear()
        self.faults, self.output, self.code = [], [], 0

    @contextmanager
    def held(self, *arguments: object, step: int = AT, **variables: str) -> Iterator[Command]:
        """A command whose rank 0 stands in a step within the block, and then goes on; ended after the block."""
        self.faults = [*self.faults, Fault("forward", "hold", rank=0, step=step, name="held")]
        marks = self.box.folder / "marks"
        with self.start(*arguments, **variables) as command:
            command.wait_for((marks / "held.0").exists)
            yield command
            (marks / "held.go").touch()
            self.code, output = command.finish()
        self.output.append(output)

    def note_fault(self, name: str = "fault") -> None:
        """A fault from outside happens now."""
        (self.box.folder / "marks" / f"{name}.0").write_text(json.dumps({"time": time.time()}))

    def state(self) -> State:
        """What the run ended with."""
        final = self.folder / "final"
        weights = {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(final.glob("*.safetensors"))
        }
        losses = {int(line["step"]): line["train/loss"] for line in self.lines("metrics.jsonl") if "train/loss" in line}
        return State(weights, self._rows(), losses)

    def _rows(self) -> dict[int, list[str]]:
        """The rows of each step over all ranks, as they were consumed last."""
        taken: dict[int, dict[str, tuple[float, list[str]]]] = {}
        for path in sorted((self.box.folder / "log").glob("rank-*.jsonl")):
            for line in path.read_text().splitlines():
                entry = json.loads(line)
                taken.setdefault(entry["step"], {})[path.stem] = (entry["time"], entry["rows"])
        return {step: sorted(row for _, rows in by_rank.values() for row in rows) for step, by_rank in taken.items()}

    def measured(self, name: str = "fault") -> Measured:
        """Times of the recovery from a fault."""
        began = self.fault_time(name)
        if began is None:
            return Measured()
        failures = [line["time"] for line in self.lines("events.jsonl") if line["kind"] in ("failure", *FOUND)]
        attempts = [line for line in self.lines("events.jsonl") if line["kind"] == "attempt" and line["time"] > began]
        steps = [line for line in self.lines("metrics.jsonl") if "train/loss" in line]
        before = max((int(line["step"]) for line in steps if line["time"] <= began), default=0)
        following = [line["time"] for line in steps if attempts and line["time"] > attempts[0]["time"]]
        detected = next((moment for moment in failures if moment > began), None)
        return Measured(
            detected=None if detected is None else detected - began,
            next_step=following[0] - began if following else None,
            lost=max(0, before - (attempts[0]["resumed_step"] or 0)) if attempts else None,
        )


@dataclass(frozen=True)
class Measured:
    """Seconds from a fault to its detection and to the next step, and the number of steps that were done again."""

    detected: float | None = None
    next_step: float | None = None
    lost: int | None = None


@contextmanager
def trial(folder: Path, **sections: Any) -> Iterator[Trial]:
    """A tiny recipe for two ranks in a box of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    with box(folder) as made:
        settings = {
            "train": {"steps": STEPS},
            "checkpoint": {"every": EVERY, "keep": 4},
            "evaluate": {"every": STEPS},
            "sample": {"prompts": []},
        }
        for name, section in sections.items():
            settings[name] = {**settings.get(name, {}), **section}
        recipe = write_recipe(folder, write_corpus(folder), **settings)
        yield Trial(made, recipe)


Look = Callable[[Trial, Command], None]
