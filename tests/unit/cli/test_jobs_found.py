"""Finding jobs by name, how they are told, and what a cluster could never hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shardyard.cli.commands.jobs_found import age_seconds, doing, exit_code_of, find, own, pick
from shardyard.cli.main import run as command
from shardyard.errors import UsageError
from shardyard.launch.schedulers.ray.api import target
from shardyard.launch.schedulers.ray.jobs import amount_of, refuse_what_never_fits, world_on
from shardyard.planning.placement import Amount, Node
from shardyard.recipe.loading.load import load_recipe
from shardyard.tracking.files import encode
from shardyard.tracking.run.folder import RunFolder


def _job(name: str, status: str = "RUNNING", **fields: Any) -> dict[str, Any]:
    return {
        "submission_id": name,
        "status": status,
        "start_time": 1_000_000,
        "metadata": {"shardyard_run": name, "job_name": f"name-of-{name}"},
        **fields,
    }


JOBS = [_job("gpt-20261122-101010-aaaa"), _job("gpt-20261122-101011-bbbb"), _job("bert-20261122-101012-cccc")]


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("gpt-20261122-101010-aaaa", 0),
        ("gpt-20261122-101011", 1),
        ("b", 2),
        ("latest", 2),
        ("name-of-gpt-20261122-101011-bbbb", 1),
    ],
)
def test_ids_unique_beginnings_names_and_latest(text: str, index: int) -> None:
    assert pick(JOBS, text, "here") is JOBS[index]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpt-", "may be any of 2 jobs at here: gpt-20261122-101010-aaaa, gpt-20261122-101011-bbbb"),
        ("gpt-20261122-101010-aaab", "Nearest: gpt-20261122-101010-aaaa"),
    ],
)
def test_names_that_stand_for_no_job_or_for_many(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pick(JOBS, text, "here")


def test_no_jobs_at_all() -> None:
    with pytest.raises(UsageError, match="no jobs of Shardyard"):
        pick([], "latest", "here")


def test_jobs_of_others_are_left_to_ray() -> None:
    assert own([{"submission_id": "raysubmit_1", "metadata": None}, *JOBS]) == JOBS


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 124, 124),
        ("FAILED", None, 1),
        ("STOPPED", None, 130),
        ("SUCCEEDED", None, 0),
    ],
)
def test_exit_codes_without_a_run_folder(status: str, code: int | None, expected: int) -> None:
    assert exit_code_of(_job("a", status, driver_exit_code=code), None) == expected


def _run(tmp_path: Path, **fields: Any) -> RunFolder:
    return RunFolder.create(tmp_path, "tiny", "", "", total_steps=500, **fields)


def test_a_stopped_job_has_the_code_of_its_run_folder(tmp_path: Path) -> None:
    folder = _run(tmp_path)
    folder.update(state="preempted", exit_code=143)
    assert exit_code_of(_job("a", "STOPPED"), folder) == 143
    folder.update(state="running", exit_code=None)
    assert exit_code_of(_job("a", "STOPPED"), folder) in (1, 130)


def test_what_a_job_does_comes_from_the_run_folder_or_the_log(tmp_path: Path) -> None:
    folder = _run(tmp_path, waiting="waiting for resources: needs 2 CPU cores; 0 free")
    assert doing(_job("a", "PENDING"), folder) == "Ray prepares it"
    assert doing(_job("a"), folder) == "waiting for resources: needs 2 CPU cores; 0 free"
    folder.update(waiting=None)
    assert doing(_job("a"), folder) == "starting"
    folder.metrics.write_text(encode({"step": 120, "time": 1.0, "train/loss": 1.93}) + "\n")
    assert doing(_job("a"), folder) == "step 120/500, loss 1.9300"
    log = "tiny: 500 steps\n* waiting for resources: needs 2 CPU cores; 0 free\n"
    assert doing(_job("a"), None, log) == "waiting for resources: needs 2 CPU cores; 0 free"
    assert doing(_job("a"), None, f"{log}  120/500   1.9300  1.0e-3\n") == "step 120/500, loss 1.9300"
    assert doing(_job("a", "SUCCEEDED", driver_exit_code=0), folder) == "exit code 0, step 120/500, loss 1.9300"


def test_age() -> None:
    assert age_seconds(_job("a"), now=1010.0) == 10.0


def test_a_plain_run_is_found_without_a_cluster(tmp_path: Path) -> None:
    folder = _run(tmp_path)
    found = find(folder.id[:8], None, tmp_path)
    assert (found.job, found.folder, found.ended) == (None, folder, False)
    folder.update(state="interrupted")
    assert (found.ended, found.exit_code) == (True, 130)


def test_no_cluster_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SHARDYARD_HOME", str(tmp_path))
    with pytest.raises(UsageError, match="--address http://HEAD:8265"):
        target(None)
    with pytest.raises(UsageError, match="no address of Ray's Jobs API"):
        target("ftp://somewhere")


def test_the_address_that_is_given_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDYARD_HOME", str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", "http://second:8265")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    assert target("http://first:8265/").url == "http://first:8265"
    assert target(None).url == "http://second:8265"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://third:8265")
    assert target(None).url == "http://third:8265"
    assert target(None).token == "secret"


def _node(name: str, cpus: float, gpus: float = 0.0) -> Node:
    return Node(name, Amount(cpus, gpus), Amount(cpus, gpus))


def test_what_a_cluster_could_never_hold_is_refused_in_numbers() -> None:
    recipe = load_recipe("gpt/quickstart", ["cluster.workers=4", "cluster.gpus_per_worker=0"]).recipe
    nodes = [_node("a", 2), _node("b", 1)]
    with pytest.raises(UsageError, match="needs 4 CPU cores; 3 in the cluster at http://head"):
        refuse_what_never_fits(recipe, gpu=False, nodes=nodes, url="http://head")
    refuse_what_never_fits(recipe, gpu=False, nodes=[*nodes, _node("c", 1)], url="http://head")
    apart = load_recipe("gpt/quickstart", ["cluster.workers=2", "cluster.placement=strict_spread"]).recipe
    with pytest.raises(UsageError, match="on 2 nodes"):
        refuse_what_never_fits(apart, gpu=False, nodes=[_node("a", 8)], url="http://head")


def test_the_world_follows_the_cluster_and_not_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    recipe = load_recipe("gpt/quickstart", []).recipe
    assert world_on(recipe, [_node("a", 8, 4)]).gpu is True
    assert world_on(recipe, [_node("a", 8)]).gpu is False
    assert world_on(recipe, [_node("a", 8)]).device_bytes is None
    none = load_recipe("gpt/quickstart", ["cluster.gpus_per_worker=0"]).recipe
    assert world_on(none, [_node("a", 8, 4)]).gpu is False


def test_resources_as_ray_lists_them() -> None:
    found = amount_of({"CPU": 2.0, "memory": "4.000 GiB", "node:__internal_head__": 1.0})
    assert found == Amount(cpus=2.0, gpus=0.0, memory=4 * 1024**3)
    assert amount_of({"CPU": 1.0, "GPU": 0.5, "memory": 1024.0}) == Amount(1.0, 0.5, 1024.0)


class _Api:
    """A cluster that knows one job."""

    cluster = type("Where", (), {"url": "http://127.0.0.1:9"})

    def __init__(self, job: dict[str, Any]) -> None:
        self._job = job

    def jobs(self) -> list[dict[str, Any]]:
        return [self._job]


@pytest.mark.parametrize(
    ("status", "state", "driver", "is_job"),
    [
        ("STOPPED", "running", {}, False),  # resumed here: this process drives it
        ("STOPPED", "interrupted", {}, True),
        ("RUNNING", "running", {}, True),
        ("FAILED", "running", {"driver": {"host": "elsewhere", "pid": 1}}, True),  # its node died, and cannot tell
    ],
)
def test_a_run_that_was_resumed_after_its_job_ended_is_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str, state: str, driver: dict[str, Any], is_job: bool
) -> None:
    run = RunFolder.create(tmp_path, "gpt", "a", "b")
    run.update(state=state, job={"submission_id": run.id})
    run.update(**driver)
    job = _job(run.id, status)
    job["metadata"]["shardyard_run_folder"] = str(run.path)
    monkeypatch.setattr("shardyard.launch.schedulers.ray.jobs.connect", lambda address: _Api(job))
    found = find(run.id, None, tmp_path)
    assert (found.job is not None) == is_job
    if not is_job:
        assert not found.ended
        found.stop()
        assert run.stop_requested() == "interrupt"


def test_a_run_without_its_process_is_not_said_to_stop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder.create(tmp_path, "tiny", "a", "b")
    run.update(state="running")
    run.update(driver={**run.info()["driver"], "pid": 2**22 + 1})
    assert command(["stop", run.id, "--runs-dir", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert f"{run.id} cannot be stopped: its process 4194305 on {run.info()['driver']['host']} is gone" in said
    assert f"shardyard resume {run.path}" in said
    assert run.stop_requested() is None
    run.update(state="running")
    assert command(["stop", run.id, "--runs-dir", str(tmp_path)]) == 0
    assert run.stop_requested() == "interrupt"
