"""`shardyard plan --gpu`: a plan for GPUs that this machine does not have, and what it refuses."""

from __future__ import annotations

import json

import pytest

from shardyard.cli import main as cli

H100 = ["plan", "gpt/llama3-8b", "--gpu", "h100-80gb"]


def test_the_plan_has_the_memory_of_the_gpu_and_a_forecast(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*H100, "--gpus", "64", "--network", "400gx8", "--price", "2.5", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["world"] == told["world"] | {"size": 64, "gpu": True, "device_bytes": 81559 * 2**20}
    assert told["fits"]
    found = told["forecast"]
    assert found["hardware"]["per_node"] == 8
    assert found["cost"] == pytest.approx(2.5 * found["gpu_hours"])
    assert found["tokens_per_second_per_gpu"] == pytest.approx(7000, rel=0.25)


def test_the_text_goes_on_with_the_forecast(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*H100, "--gpus", "8", "--memory", "40GiB"]) == 0
    told = dict(line.split("\t")[:2] for line in capsys.readouterr().out.splitlines())
    assert told["GPUs"] == "8 × NVIDIA H100 SXM 80 GB"
    assert "between nodes" not in told
    assert told["cost"] == "not known"
    assert float(told["MFU"].rstrip("%")) > 25


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["plan", "gpt/llama3-8b", "--gpus", "64", "--price", "2"], "--gpus, --price: name the accelerator too"),
        ([*H100, "--gpus", "64"], "64 GPUs with 8 in a node need a network"),
        (["plan", "gpt/llama3-8b", "--gpu", "h1000"], "--gpu h1000 is not in the table. Did you mean"),
        ([*H100, "--gpus", "64", "--network", "wifi"], "--network wifi is not known"),
        ([*H100, "--gpus", "56", "--network", "400gx8"], "cannot be shared by 56 workers; set a multiple of 56"),
    ],
)
def test_what_cannot_be_planned_is_refused(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(options) == 2
    assert message in capsys.readouterr().err
