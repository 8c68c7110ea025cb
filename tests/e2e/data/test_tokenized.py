"""Tokenising by commands: killed and called again, on Ray, and a run that begins with texts and goes on with tokens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest

from shardyard.data.tokenized.layout import damaged_files, read_manifest
from support.cli import COMMAND, Command, write_recipe
from support.tiny import write_corpus
from support.waiting import PATIENCE_SECONDS, until

pytestmark = pytest.mark.slow


def tokenize(recipe: Path, cache: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, "data", "tokenize", str(recipe), "--json", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "SHARDYARD_CACHE": str(cache)},
    )


def finished(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    output, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, errors
    found: list[dict[str, Any]] = json.loads(output)
    return found


def test_a_killed_call_leaves_nothing_half_done_and_goes_on(tmp_path: Path) -> None:
    # Two tasks for two processes.
    for name in ("a", "b"):
        lines = (json.dumps({"text": f"{name}{number} " * 300}) for number in range(6000))
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    recipe = write_recipe(tmp_path, tmp_path / "*.jsonl", tokenizer="bytes")
    process = tokenize(recipe, tmp_path / "cache", "--local", "--workers", "2")
    try:
        until(lambda: list(tmp_path.glob("cache/tokenized/*/.*.partial")), "a shard to be begun")
        processes = psutil.Process(process.pid).children(recursive=True)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    until(lambda: not any(child.is_running() for child in processes), "its processes to end with it")
    assert not list(tmp_path.glob("cache/tokenized/*/manifest.json"))
    (made,) = finished(tokenize(recipe, tmp_path / "cache", "--local", "--workers", "2", "--verify"))
    (whole,) = finished(tokenize(recipe, tmp_path / "other", "--local", "--workers", "1"))
    folder = Path(made["folder"])
    assert not list(folder.glob(".*"))
    assert read_manifest(folder).shards == read_manifest(Path(whole["folder"])).shards
    assert made["documents"] == 12_000


def test_a_run_begins_with_texts_and_goes_on_with_tokens_made_on_ray(tmp_path: Path) -> None:
    corpus, cache = write_corpus(tmp_path), tmp_path / "cache"
    recipe = write_recipe(
        tmp_path, corpus, train={"steps": 12}, checkpoint={"every": 4, "keep": 4}, evaluate={"every": 6}, sample={}
    )
    with Command("launch", recipe, runs=tmp_path / "runs", SHARDYARD_CACHE=str(cache)) as command:
        code, output = command.finish()
    assert code == 0, output
    before = [(line["step"], line["train/loss"]) for line in command.metrics() if "train/loss" in line]
    assert not any("tokenised" in event["text"] for event in command.events("notice"))
    (made,) = finished(tokenize(recipe, cache))
    assert damaged_files(Path(made["folder"])) == []
    run = command.folder.name
    with Command("resume", run, "--step", "4", runs=tmp_path / "runs", SHARDYARD_CACHE=str(cache)) as resumed:
        code, output = resumed.finish()
    assert code == 0, output
    after = [(line["step"], line["train/loss"]) for line in resumed.metrics() if "train/loss" in line]
    assert after[-8:] == before[-8:]
    assert len(after) > len(before) or after == before
    assert any("is read from tokenised data" in event["text"] for event in resumed.events("notice"))
