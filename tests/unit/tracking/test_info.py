"""run.json as a type: folders of every version, keys of other versions, and what cannot be read."""

from __future__ import annotations

import dataclasses
import json
import typing
from pathlib import Path
from typing import Any

import pytest

from shardyard.errors import RunFolderError
from shardyard.tracking.run.folder import RunFolder
from shardyard.tracking.run.info import FORMAT, RunFields, RunInfo
from shardyard.tracking.run.summary import summarize
from shardyard.tracking.run.waiting import Wait

# As the first version wrote it, before there were leases, plans, jobs and a format.
FIRST: dict[str, Any] = {
    "id": "gpt-20260101-000000-aaaa",
    "name": "gpt",
    "state": "finished",
    "created": "2026-01-01T00:00:00.000000+00:00",
    "started": "2026-01-01T00:00:01.000000+00:00",
    "ended": "2026-01-01T00:10:00.000000+00:00",
    "world_size": 2,
    "attempts": 1,
    "step": 20,
    "total_steps": 20,
    "provenance": {"git": {"commit": "0" * 40, "dirty": False}},
}
# A job that waits.
WAITING = FIRST | {
    "state": "running",
    "ended": None,
    "driver": {"host": "head", "pid": 7},
    "waiting": "waiting: 1 job submitted before it is ahead",
    "job": {"submission_id": "gpt-1", "address": "http://head:8265", "retries": 2},
}


def written(folder: Path, info: dict[str, Any]) -> RunFolder:
    run = folder / str(info["id"])
    run.mkdir()
    (run / "run.json").write_text(json.dumps(info))
    return RunFolder(run)


def test_folders_of_before_are_read(tmp_path: Path) -> None:
    run = written(tmp_path, FIRST)
    info = run.info()
    assert (info.format, info.state, info.world_size, info.attempts, info.step) == (0, "finished", 2, 1, 20)
    assert (info.driver, info.job, info.plan, info.placement, info.exit_code) == ({}, {}, {}, [], None)
    assert summarize(run).total_steps == 20
    waiting = RunInfo.from_json(WAITING)
    assert waiting.waiting == Wait("unknown", text="waiting: 1 job submitted before it is ahead")
    assert waiting.job.get("retries") == 2


def test_keys_of_other_versions_outlive_an_update(tmp_path: Path) -> None:
    run = written(tmp_path, FIRST | {"from_tomorrow": {"deep": [1, 2]}})
    info = run.update(step=21)
    assert (info.step, info.raw["from_tomorrow"]) == (21, {"deep": [1, 2]})
    on_disk = json.loads(run.info_file.read_text())
    assert on_disk == FIRST | {"from_tomorrow": {"deep": [1, 2]}, "step": 21}


def test_a_new_run_names_its_format(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "gpt", "", "")
    assert run.info().format == FORMAT


def test_a_newer_format_is_refused_with_a_way_out(tmp_path: Path) -> None:
    run = written(tmp_path, FIRST | {"format": FORMAT + 1})
    with pytest.raises(RunFolderError, match=rf"newer version of Shardyard \(format {FORMAT + 1}.*upgrade"):
        run.info()


def test_values_of_another_kind_count_as_missing() -> None:
    info = RunInfo.from_json(
        {"attempts": None, "step": "many", "job": [], "placement": {}, "state": 3, "world_size": True, "local": 1}
    )
    assert info == RunInfo(raw=info.raw)


def test_what_is_written_is_what_is_read() -> None:
    fields = {field.name for field in dataclasses.fields(RunInfo)}
    assert set(typing.get_type_hints(RunFields)) == fields - {"id", "format", "name", "raw"}
