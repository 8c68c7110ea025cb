"""A run whose machine is lost goes on from its copy in an object store, and ends as if nothing had happened."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from support.cli import Command, write_recipe
from support.servers.s3 import BUCKET, s3_server
from support.tiny import write_corpus

pytest.importorskip("moto.server")
pytest.importorskip("s3fs")
pytestmark = pytest.mark.slow


def test_a_lost_machine_costs_the_steps_since_the_newest_copy(tmp_path: Path) -> None:
    """Every tenth request is refused, and the process is killed."""
    mirror = f"s3://{BUCKET}/runs"
    more = {"evaluate": {"every": 1000}, "sample": {"prompts": []}, "cluster": {"workers": 1}}
    recipe = write_recipe(tmp_path, write_corpus(tmp_path), checkpoint={"every": 20, "keep": 2}, **more)
    first, second = tmp_path / "first", tmp_path / "second"
    steps = ["-s", "train.steps=200", "-s", "train.precision=fp32"]
    with s3_server(share=0.1):
        with Command(
            "launch", recipe, "--local", *steps, "-s", "checkpoint.mirror=s3://nowhere/runs", runs=first
        ) as one:
            code, output = one.finish()
        assert (code, "s3://nowhere/runs" in output, "there is no such bucket" in output) == (1, True, True), output
        assert one.metrics() == []
        shutil.rmtree(first)
        with Command("launch", recipe, "--local", *steps, "-s", f"checkpoint.mirror={mirror}", runs=first) as one:
            one.wait_for(lambda: list(first.glob("*/events.jsonl")) and one.events("checkpoint_mirrored"))
            os.kill(one.process.pid, signal.SIGKILL)
            name = one.folder.name
        shutil.rmtree(first)
        with Command("resume", f"{mirror}/{name}", runs=second) as resumed:
            code, output = resumed.finish()
        assert code == 0, output
        with Command("checkpoint", "verify", f"{mirror}/{name}", runs=second) as verified:
            code, output = verified.finish()
        assert (code, output.split()) == (0, ["step-00000180", "whole", "step-00000200", "whole"])
    assert len(resumed.metrics()) == 200
    with Command("launch", recipe, "--local", *steps, runs=tmp_path / "third") as plain:
        assert plain.finish()[0] == 0
    ours, theirs = ((one.folder / "final" / "model.safetensors").read_bytes() for one in (resumed, plain))
    assert ours == theirs
