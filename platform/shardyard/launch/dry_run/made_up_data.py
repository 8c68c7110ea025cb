"""Made-up data of a dry run: rows with the columns of the objective, in a file, or in a folder of pictures."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np

from shardyard.data.datasets.images import png
from shardyard.errors import UsageError
from shardyard.objectives.registry import objective_spec

ROWS = 256
PICTURES, _PIXELS = 80, 64
_WORDS = ("the", "model", "reads", "a", "token", "and", "learns", "what", "follows", "from", "all", "that", "it", "has")
_CLASSES = 4
# Words of a text: more than a row has tokens, so that rows are full and those of a run alike.
_LEAST_WORDS, _MOST_WORDS = 80, 120
# Columns before others in a row, which leave room for these.
_SHORT = ("prompt",)


def made_up_source(objective: str, folder: Path) -> dict[str, object]:
    """A source of made-up rows for an objective, below `folder`; the same for the same objective.

    Raises:
        UsageError: rows of the objective cannot be made up.
    """
    columns = objective_spec(objective).columns
    generator = random.Random(objective)
    kinds = set(columns.values())
    pictures = "image" in kinds
    unknown = kinds - _MADE.keys() - {"image"}
    if unknown or {"image", "text"} <= kinds:
        raise UsageError(
            f"a dry run makes up texts, labels, and pictures without texts, and {objective} reads columns of "
            f"{', '.join(sorted(unknown or kinds))}; try `shardyard launch RECIPE --try 4` on its data."
        )
    made = {name: _short_text if name in _SHORT else _MADE.get(kind) for name, kind in columns.items()}
    rows = [{name: make(generator) for name, make in made.items() if make is not None} for _ in range(ROWS)]
    if not pictures:
        return {"path": str(_write_rows(folder / f"{objective}.jsonl", rows)), "holdout": 0.2}
    own = folder / objective
    own.mkdir(parents=True, exist_ok=True)
    for index, row in enumerate(rows[:PICTURES]):
        row["file_name"] = f"{index:03d}.png"
        pixels = np.random.default_rng(index).integers(256, size=(_PIXELS, _PIXELS, 3), dtype=np.uint8)
        (own / str(row["file_name"])).write_bytes(png(pixels))
    _write_rows(own / "metadata.jsonl", rows[:PICTURES])
    return {"path": str(own), "holdout": 0.2}


def _write_rows(path: Path, rows: list[dict[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _text(generator: random.Random) -> str:
    """Words, of which the first one is always the same: the answer to every question."""
    return " ".join([_WORDS[0], *generator.choices(_WORDS, k=generator.randint(_LEAST_WORDS, _MOST_WORDS))])


def _short_text(generator: random.Random) -> str:
    return " ".join(generator.choices(_WORDS, k=2))


def _messages(generator: random.Random) -> list[dict[str, str]]:
    roles = ("user", "assistant", "user", "assistant")
    return [{"role": role, "content": " ".join(generator.choices(_WORDS, k=4))} for role in roles]


_MADE: dict[str, Callable[[random.Random], object]] = {
    "text": _text,
    "messages": _messages,
    "label": lambda generator: generator.randrange(_CLASSES),
    "number": lambda generator: generator.random(),
    "texts": lambda generator: [_text(generator) for _ in range(_CLASSES)],
    # As many as there are texts, where a row has both.
    "tags": lambda generator: [generator.randrange(_CLASSES) for _ in range(_CLASSES)],
    "numbers": lambda generator: [float(generator.randrange(2)) for _ in range(_CLASSES)],
    "answers": lambda generator: {"text": [_WORDS[0]], "answer_start": [0]},
}
