"""What a plan predicted beside what its run measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shardyard.cli import main as cli
from shardyard.engine.prediction import predicted
from shardyard.planning.architecture import Architecture
from shardyard.planning.plan import World, make_plan
from shardyard.recipe.loading.load import parse_recipe
from shardyard.recipe.precision import Bf16
from shardyard.tracking.metrics import record
from shardyard.tracking.run.folder import RunFolder
from shardyard.tracking.run.info import Place
from shardyard.tracking.run.predicted import Measured, compared, measured

H100 = "NVIDIA H100 80GB HBM3"
SMALL = Architecture("gpt2", 124_000_000, 124_000_000, 7_000_000, 12, 768, 12, 50257, 1024)
RECIPE = parse_recipe(
    {
        "name": "predicted",
        "model": {"family": "gpt2"},
        "data": {"sequence_length": 1024, "train": [{"source": "python-docs"}]},
        "train": {"global_batch": 64, "steps": 100, "precision": "bf16"},
        "optimizer": {"name": "adamw", "lr": 1e-3},
    }
)
UNITS = Bf16(True, "it has")


def test_speed_is_predicted_for_one_node_of_known_gpus() -> None:
    plan = make_plan(RECIPE, SMALL, World(8, gpu=True, device_bytes=80 * 2**30, bf16=UNITS))
    told = predicted(RECIPE, plan, H100, [Place(host="a", ranks=list(range(8)))])
    assert told["gpu"] == "h100-80gb"
    assert told["device_bytes"] == plan.memory.device_bytes
    assert told["tokens_per_second"] == pytest.approx(plan.tokens_per_step / told["step_seconds"], rel=0.01)
    memory_alone = {"device_bytes": plan.memory.device_bytes}
    assert predicted(RECIPE, plan, "GPU of a kind", []) == memory_alone
    assert predicted(RECIPE, plan, "cpu", []) == memory_alone
    assert predicted(RECIPE, plan, H100, [Place(host="a"), Place(host="b")]) == memory_alone


def run_with(tmp_path: Path, told: dict[str, float], lines: list[dict[str, float]]) -> RunFolder:
    folder = RunFolder.create(tmp_path, "predicted", "", "")
    folder.update(predicted=told)  # type: ignore[arg-type]
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_both_are_shown_on_gpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        {
            "step": step,
            record.TOKENS_PER_SECOND: rate,
            record.STEP_SECONDS: 1.0,
            record.PEAK_ALLOCATED_BYTES: 10 * 2**30,
            record.RSS_BYTES: 2**30,
        }
        for step, rate in enumerate((100.0, 900.0, 1000.0), 1)
    ]
    told = {"device_bytes": 8 * 2**30, "tokens_per_second": 1000.0, "step_seconds": 0.8}
    folder = run_with(tmp_path, told, lines)
    assert measured(folder) == Measured(900.0, 1.0, 10 * 2**30, 2**30)
    assert dict(compared(folder)) == {
        "tokens/s": "900 measured, 1.0K predicted (−10%)",
        "step": "1.0 s measured, 800 ms predicted (+25%)",
        "memory a rank": "10.0 GiB measured, 8.0 GiB predicted (+25%)",
    }
    assert cli.run(["runs", folder.id, "--runs-dir", str(tmp_path)]) == 0
    assert "memory a rank\t10.0 GiB measured, 8.0 GiB predicted (+25%)" in capsys.readouterr().out
    assert cli.run(["runs", folder.id, "--runs-dir", str(tmp_path), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["predicted"]["device_bytes"], shown["measured"]["tokens_per_second"]) == (8 * 2**30, 900.0)


def test_on_cpus_memory_alone_is_predicted(tmp_path: Path) -> None:
    line = {"step": 1, record.TOKENS_PER_SECOND: 1234.0, record.RSS_BYTES: float(2**30)}
    assert dict(compared(run_with(tmp_path / "a", {"device_bytes": 2**27}, [line]))) == {
        "tokens/s": "1.2K measured",
        "memory a rank": "128.0 MiB predicted; 1.0 GiB resident, with the process itself",
    }
    assert dict(compared(run_with(tmp_path / "b", {"device_bytes": 2**27}, []))) == {
        "memory a rank": "128.0 MiB predicted"
    }
    # Runs from before have no prediction.
    assert dict(compared(run_with(tmp_path / "c", {}, [line]))) == {"tokens/s": "1.2K measured"}
