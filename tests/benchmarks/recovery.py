"""From a killed rank to the next step, by phase: `launch` on two ranks, with and without spare processes.

The phases are those of the run's own event, `recovered`; `after the kill` is measured from outside. The rank kills
itself at a step that it reaches once spares have had the time to import.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from chaos.trial import Fault, trial
from shardyard.engine.hooks.recovery import PHASES

STEPS = 1200
ARMS = {"with spares": "0", "without": "1e9"}


def turn(folder: Path, after: str) -> dict[str, float]:
    """Seconds of each phase; `after`: seconds of training before spares are started."""
    with trial(folder, train={"steps": STEPS}, checkpoint={"every": 100}, evaluate={"every": STEPS}) as one:
        one.faults = [Fault("backward", "signal:SIGKILL", step=STEPS - 50)]
        one.variables = {"CHAOS_SPARES_AFTER": after}
        code = one.run("launch", one.recipe)
        assert code == 0, one.output[-1]
        (event,) = [line for line in one.lines("events.jsonl") if line["kind"] == "recovered"]
        assert event["spares"] == (after == "0"), event
        found = one.measured()
        assert found.next_step is not None
        return {**event["phases"], "all": event["seconds"], "after the kill": found.next_step}


def main() -> int:
    """Take turns and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as scratch:
        for number in range(options.turns):
            for arm, after in ARMS.items():
                found[arm].append(turn(Path(scratch) / f"{arm}-{number}", after))
    names = [*PHASES.values(), "all", "after the kill"]
    lines = [f"{'seconds':16}" + "".join(f"{arm:>14}" for arm in ARMS)]
    for name in names:
        medians = [statistics.median(one.get(name, 0.0) for one in turns) for turns in found.values()]
        lines.append(f"{name:16}" + "".join(f"{value:14.2f}" for value in medians))
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
