"""Made-up data of a dry run: a file of rows with the columns of the objective."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

from shardyard.errors import UsageError
from shardyard.objectives.registry import objective_spec

ROWS = 256
_WORDS = ("the", "model", "reads", "a", "token", "and", "learns", "what", "follows", "from", "all", "that", "it", "has")
_CLASSES = 4


def made_up_source(objective: str, folder: Path) -> dict[str, object]:
    """A source of made-up rows for an objective, in a file below `folder`; the same for the same objective.

    Raises:
        UsageError: rows of the objective cannot be made up.
    """
    columns = objective_spec(objective).columns
    generator = random.Random(objective)
    unknown = {kind for kind in columns.values() if kind not in _MADE}
    if unknown:
        raise UsageError(
            f"a dry run makes up texts, labels and conversations, and {objective} reads columns of "
            f"{', '.join(sorted(unknown))}; try `shardyard launch RECIPE --try 4` on its data."
        )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{objective}.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for _ in range(ROWS):
            row = {name: _MADE[kind](generator) for name, kind in columns.items()}
            file.write(json.dumps(row) + "\n")
    return {"path": str(path), "holdout": 0.2}


def _text(generator: random.Random) -> str:
    return " ".join(generator.choices(_WORDS, k=generator.randint(8, 40)))


def _messages(generator: random.Random) -> list[dict[str, str]]:
    roles = ("user", "assistant", "user", "assistant")
    return [{"role": role, "content": " ".join(generator.choices(_WORDS, k=4))} for role in roles]


_MADE: dict[str, Callable[[random.Random], object]] = {
    "text": _text,
    "messages": _messages,
    "label": lambda generator: generator.randrange(_CLASSES),
    "number": lambda generator: generator.random(),
    "texts": lambda generator: [_text(generator) for _ in range(_CLASSES)],
}
