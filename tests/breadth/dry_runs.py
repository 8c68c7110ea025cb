"""Dry runs of the shipped recipes, as tables.

`PYTHONPATH=tests python -m breadth.dry_runs RECIPE …` runs each of them by the command (all without a name, about a
minute each) and keeps the results in `dry-runs.jsonl`; then, and with `--page` alone, it writes the tables of
docs/large/dry-runs.md. With `--alone` the engine trains and exports the same narrow models on as many ranks without
Ray, in seconds each.
"""

from __future__ import annotations

import argparse
import datetime
import json
import pickle
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from shardyard.engine.memory.measured import read_allocated
from shardyard.engine.run import run_rank
from shardyard.engine.world import Rank
from shardyard.errors import ShardyardError
from shardyard.launch.dry_run.comparison import compared
from shardyard.launch.dry_run.narrow_recipe import narrow_recipe
from shardyard.recipe.catalog.shipped import shipped_recipes
from shardyard.recipe.loading.load import load_recipe
from shardyard.recipe.precision import with_precision
from shardyard.units import format_bytes
from support.cli import Command
from support.ranks import run_ranks
from support.tiny import tiny_job

RESULTS = Path(__file__).with_name("dry-runs.jsonl")
PAGE = Path(__file__).parents[2] / "docs" / "large" / "dry-runs.md"
RANKS = 4
BEGIN, END = "<!-- written by tests/breadth/dry_runs.py: begin -->", "<!-- end -->"
PARTS = ("parameters", "gradients", "optimizer", "activations and logits", "buffers", "all")
# A part whose planned or allocated bytes are zero has no ratio.
ROW = re.compile(
    r"^ *(?P<part>[a-z][a-z ]*?)[\t ]+(?P<planned>[\d.]+ (?:[KMGT]i)?B)[\t ]+(?P<allocated>[\d.]+ (?:[KMGT]i)?B)"
    r"(?:[\t ]+(?P<ratio>\d+\.\d\d))?[\t ]*$",
    re.MULTILINE,
)
_ALONE_LAYERS = re.compile(r"(?P<layers>\d+ of \d+) layers")
_LAYERS = re.compile(r"dry run of \S+: (?P<layers>\d+ of \d+) layers")
# What the plan and the ranks may differ by as a whole.
WITHIN = 0.1


@dataclass(frozen=True)
class Part:
    """One row of the table that the command prints: bytes as it prints them, and planned over allocated."""

    planned: str
    allocated: str
    ratio: str


@dataclass(frozen=True)
class Outcome:
    """A dry run. error: why it did not end well, in one line; layers: such as "2 of 80"; alone: without Ray."""

    recipe: str
    date: str
    seconds: int
    layers: str = ""
    parts: dict[str, Part] = field(default_factory=dict)
    error: str = ""
    alone: bool = False

    @property
    def agrees(self) -> bool:
        """Whether the plan's memory is what was allocated, within the limit."""
        return not self.error and abs(float(self.parts["all"].ratio) - 1) <= WITHIN


def parts_of(output: str) -> dict[str, Part]:
    """The rows of memory that `shardyard launch --dry-run` prints, by part."""
    rows = [row.groupdict() for row in ROW.finditer(output)]
    return {row["part"]: Part(row["planned"], row["allocated"], row["ratio"] or "") for row in rows}


def run(recipe: str, runs: Path) -> Outcome:
    """One dry run, as a person starts it; its folder remains."""
    begun, today = time.monotonic(), datetime.date.today().isoformat()
    with Command("launch", recipe, "--dry-run", RANKS, runs=runs, COLUMNS="160") as command:
        code, output = command.finish()
    seconds = round(time.monotonic() - begun)
    layers = _LAYERS.search(output)
    if code == 0:
        parts = parts_of(output)
        missing = "" if set(PARTS) <= set(parts) else "no memory was measured"
        (folder,) = (one for one in (runs / "dry-runs").glob("*-dry-run-*") if one.is_dir())
        if not any((folder / "final").glob("*.safetensors")):
            missing = "nothing was exported"
        return Outcome(recipe, today, seconds, layers["layers"] if layers else "", parts, missing)
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"error|refus|cannot|fail", line, re.IGNORECASE)]
    return Outcome(recipe, today, seconds, error=" ".join((errors or lines or ["no output"])[0].split())[:300])


def run_alone(recipe: str, runs: Path) -> Outcome:
    """The same by the engine on ranks of this process."""
    begun, today = time.monotonic(), datetime.date.today().isoformat()

    def ended(layers: str = "", parts: dict[str, Part] | None = None, error: str = "") -> Outcome:
        return Outcome(recipe, today, round(time.monotonic() - begun), layers, parts or {}, error, alone=True)

    try:
        narrow = narrow_recipe(load_recipe(recipe).recipe, RANKS, runs, runs)
        given = narrow.recipe
        made = given if given.train.precision else with_precision(given, "bf16")
        job = replace(tiny_job(made, runs / "runs", world_size=RANKS), measure=True)
        (runs / "job").write_bytes(pickle.dumps(job))
        run_ranks(RANKS, _train, str(runs / "job"))
    except (ShardyardError, AssertionError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return ended(error=(lines or ["no message"])[-1][:300])
    if not any(job.folder.final.glob("*.safetensors")):
        return ended(error="nothing was exported")
    layers = _ALONE_LAYERS.search(narrow.text)
    parts = {
        one.part: Part(
            format_bytes(one.planned_bytes),
            format_bytes(one.allocated_bytes),
            "" if one.ratio is None else f"{one.ratio:.2f}",
        )
        for one in compared(job.plan.memory, read_allocated(job.folder))
    }
    return ended(layers["layers"] if layers else "", parts)


def _train(rank: Rank, path: str) -> str:
    return run_rank(pickle.loads(Path(path).read_bytes()), rank)


def read() -> dict[str, Outcome]:
    """The results that are kept, by recipe."""
    lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.is_file() else []
    found = [json.loads(line) for line in lines]
    return {
        one["recipe"]: Outcome(**{**one, "parts": {name: Part(**part) for name, part in one["parts"].items()}})
        for one in found
    }


def keep(outcomes: Sequence[Outcome]) -> None:
    """Write the results in place of earlier ones of the same recipes; those of recipes that no longer ship go."""
    found = {**read(), **{one.recipe: one for one in outcomes}}
    kept = [found[name] for name in names() if name in found]
    RESULTS.write_text("".join(json.dumps(asdict(one)) + "\n" for one in kept), encoding="utf-8")


def names() -> list[str]:
    """The shipped recipes."""
    return [one.name for one in shipped_recipes()]


def table(outcomes: Sequence[Outcome]) -> str:
    """The recipes that ran, as the page has them, and below it those that did not."""
    ran = [one for one in outcomes if not one.error]
    lines = ["| recipe | layers | " + " | ".join(PARTS) + " |", "|---" * (2 + len(PARTS)) + "|"]
    for one in ran:
        cells = [one.parts[name].ratio or f"{one.parts[name].planned} of 0" for name in PARTS]
        lines.append(f"| `{one.recipe}` | {one.layers} | {' | '.join(cells)} |")
    off = [f"`{one.recipe}` {one.parts['all'].ratio}" for one in ran if not one.agrees]
    summary = f"{len(ran)} recipes ran; the whole is within {WITHIN:.0%} for {len(ran) - len(off)} of them"
    lines += ["", summary + (f", and not for {', '.join(off)}." if off else ".")]
    refused = [one for one in outcomes if one.error]
    if refused:
        lines += ["", f"{len(refused)} did not run:", "", "| recipe | what the command said |", "|---|---|"]
        lines += [f"| `{one.recipe}` | {one.error.replace('|', '/')} |" for one in refused]
    return "\n".join(lines)


def page(text: str, outcomes: Sequence[Outcome]) -> str:
    """The page with the tables between its marks: by the command, and by the engine alone."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    alone = [one for one in outcomes if one.alone]
    tables = table([one for one in outcomes if not one.alone])
    if alone:
        tables += (
            f"\n\nBy the engine alone, without Ray, by an option of `tests/breadth/dry_runs.py`:\n\n{table(alone)}"
        )
    return f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="*", help="names of shipped recipes; all without")
    parser.add_argument("--alone", action="store_true", help="by the engine alone, without Ray")
    parser.add_argument("--page", action="store_true", help="run nothing, write the page from the kept results")
    given = parser.parse_args()
    for name in [] if given.page else given.recipes or names():
        with tempfile.TemporaryDirectory(prefix="dry-") as scratch:
            found = (run_alone if given.alone else run)(name, Path(scratch))
        keep([found])
        print(name, found.seconds, "s", found.error or found.parts["all"].ratio, flush=True)  # noqa: T201
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), list(read().values())), encoding="utf-8")


if __name__ == "__main__":
    main()
