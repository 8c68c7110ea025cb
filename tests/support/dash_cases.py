"""Run folders for the tests of the dashboard's server, and a server over them without a socket."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from shardyard.dashboard.index.index import Index
from shardyard.dashboard.index.store import Store
from shardyard.dashboard.web.security import LOOPBACK, Gate
from shardyard.dashboard.web.server import make_app

TOKEN = "a-token-of-these-tests-alone-0123456789"
ADDRESS = "http://127.0.0.1:8270"
CSRF = "X-Shardyard-CSRF"

RESOLVED = """name: {name}
model:
  family: gpt2
  config: {{n_layer: 2}}
optimizer: {{name: adamw, lr: {lr}}}
train: {{steps: 100, seed: {seed}, nothing: null}}
zero: {{stage: {stage}}}
data: {{blind: false, train: [{{source: python-docs, weight: 0.7}}]}}
tracking:
  tags: [{tags}]
  wandb: {{group: {group}}}

# Derived:
# steps: 100  (given by train.steps)
# memory: parameters: 2.1 MiB
"""


def write_run(
    runs_dir: Path,
    run_id: str,
    *,
    losses: list[Any] | None = None,
    stage: int = 1,
    lr: str = "1e-05",
    seed: int = 1,
    tags: str = "",
    group: str = "null",
    **info: Any,
) -> Path:
    """A run folder; `losses` become lines of metrics.jsonl, `info` goes into run.json."""
    folder = runs_dir / run_id
    (folder / "logs").mkdir(parents=True)
    facts: dict[str, Any] = {
        "id": run_id,
        "name": run_id.partition("-")[0],
        "state": "finished",
        "created": "2026-01-02T03:04:05+00:00",
        "world_size": 2,
        "attempts": 1,
        "step": 0,
        "total_steps": 100,
        "plan": {"tokens_per_step": 10, "flops_per_token": 6.0},
    }
    (folder / "run.json").write_text(json.dumps({**facts, **info}))
    (folder / "recipe.yaml").write_text(f"name: {facts['name']}\n")
    (folder / "resolved.yaml").write_text(
        RESOLVED.format(name=facts["name"], lr=lr, seed=seed, stage=stage, tags=tags, group=group)
    )
    add_lines(folder, losses if losses is not None else [3.0, 2.0, 1.0])
    return folder


def add_lines(folder: Path, losses: list[Any], first: int = 1) -> None:
    """Append records of steps from `first` on."""
    with (folder / "metrics.jsonl").open("a") as file:
        for step, loss in enumerate(losses, first):
            told = "NaN" if isinstance(loss, float) and math.isnan(loss) else loss
            record = {"step": step, "time": 1000.0 + step, "train/loss": told, "train/tokens": 10 * step}
            file.write(json.dumps(record) + "\n")


def index_of(runs_dir: Path, cache: Path) -> Index:
    """An index that has read everything."""
    index = Index(runs_dir, Store(runs_dir, cache))
    index.catch_up()
    return index


@contextmanager
def served(
    runs_dir: Path, cache: Path, *, authorized: bool = True, data_dirs: Sequence[Path] = ()
) -> Iterator[TestClient]:
    """A client of the application, with the token and the CSRF value in each request."""
    index = index_of(runs_dir, cache)
    gate = Gate(TOKEN, LOOPBACK, 8270)
    with TestClient(make_app(index, gate, None, data_dirs), base_url=ADDRESS) as client:
        if authorized:
            client.headers["authorization"] = f"Bearer {TOKEN}"
            client.headers[CSRF] = gate.csrf
        yield client
