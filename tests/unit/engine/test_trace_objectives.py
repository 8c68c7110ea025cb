"""`data trace` for rows of every kind: the steps of each document are those that tell it, in both orders."""

from __future__ import annotations

import importlib
import json
from collections import defaultdict
from pathlib import Path

import pytest

from shardyard.data.ledger.queries import parse_query
from shardyard.engine.inference.step_documents import documents_of_step
from shardyard.engine.inference.trace import trace_documents
from shardyard.objectives.registry import OBJECTIVES
from shardyard.recipe.loading.load import dump_recipe, parse_recipe
from shardyard.tracking.run.folder import RunFolder

pytestmark = pytest.mark.slow

STEPS = 3


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_documents_and_steps_agree(objective: str, tmp_path: Path) -> None:
    case = importlib.import_module(f"support.objectives.{objective}")
    fields = case.recipe_fields(case.write_data(tmp_path))
    fields["data"] |= {"order": 1 + OBJECTIVES.index(objective) % 2}
    if objective == "speech_ctc":
        fields["audio"] = {**fields.get("audio", {}), "join": 2}
    text = dump_recipe(parse_recipe(fields))
    run = RunFolder.create(tmp_path / "runs", "kind", text, text, world_size=1, total_steps=STEPS)
    run.update(step=STEPS)
    told: dict[tuple[str, int, str], list[tuple[int, int]]] = defaultdict(list)
    for step in range(1, STEPS + 1):
        documents = documents_of_step(run, step)["documents"]
        assert {part["row"] for part in documents} == set(range(fields["train"]["global_batch"]))
        for part in documents:
            told[part["file"], part["file_row"], part["sha256"]].append((step, part["row"]))
    found = trace_documents(run, [parse_query(json.dumps({"file": file, "row": row})) for file, row, _ in told])
    seen = {
        (one["file"], one["row"], one["sha256"]): [(row["step"], row["row"]) for row in one["seen"]]
        for one in found["documents"]
    }
    assert seen == told
