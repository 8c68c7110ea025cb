"""Jobs of KubeRay through the client of Kubernetes, against a server that answers as the real one does."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from shardyard.cli.main import run
from shardyard.errors import ShardyardError, UsageError
from shardyard.launch.jobs.submission import SubmitRequest
from shardyard.launch.schedulers.kuberay import jobs
from shardyard.launch.schedulers.kuberay.cluster import main as print_cluster
from shardyard.recipe.loading.load import load_recipe
from support.kuberay.cases import CLAIM, recipe_and_plan
from support.kuberay.server import Cluster, kube_server, write_kubeconfig
from support.waiting import PATIENCE_SECONDS

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.cluster]
QUEUED = (CLAIM, "cluster.kubernetes.queue=research", "job.priority=high")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    with kube_server(tmp_path) as (cluster, config):
        monkeypatch.setenv("KUBECONFIG", str(config))
        yield cluster


def a_request(*overrides: str, run_id: str = "quick-1", **fields: Any) -> SubmitRequest:
    overrides = overrides or (CLAIM,)
    loaded, plan = load_recipe("gpt/quickstart", overrides), recipe_and_plan("gpt/quickstart", *overrides)[1]
    given = {"job_name": "gpt-quickstart", "run_id": run_id, **fields}
    return SubmitRequest("gpt/quickstart", overrides, loaded, plan, Path("runs"), **given)


def submit(*overrides: str, **fields: Any) -> str:
    return jobs.submit(a_request(*overrides, **fields), lambda line: None)


def job_of(cluster: Cluster, name: str = "quick-1") -> dict[str, Any]:
    return cluster.objects["rayjobs", "default", name]


# -- submitting


def test_a_job_owns_its_config_map_and_takes_it_along(cluster: Cluster) -> None:
    assert submit() == "default/quick-1"
    job, config_map = job_of(cluster), cluster.objects["configmaps", "default", "quick-1"]
    (owner,) = config_map["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["uid"]) == ("RayJob", "quick-1", job["metadata"]["uid"])
    assert json.loads(config_map["data"]["job.json"])["run_id"] == "quick-1"
    jobs.cancel("default/quick-1")
    assert cluster.objects == {}


def test_a_queued_job_says_what_it_waits_for(cluster: Cluster) -> None:
    said: list[str] = []
    job_id = jobs.submit(a_request(*QUEUED), said.append)
    assert said[-1] == "default/quick-1 waits in Kueue's queue research until resources are free"
    job = job_of(cluster)
    assert job["spec"]["suspend"] is True
    job["status"] = {"jobDeploymentStatus": "Suspended"}
    assert jobs.state(job_id).message == "waits in Kueue's queue research"
    cluster.objects["workloads", "default", "w"] = {
        "metadata": {"labels": {"kueue.x-k8s.io/job-uid": job["metadata"]["uid"]}},
        "status": {"conditions": [{"type": "QuotaReserved", "status": "False", "message": "8 more GPUs needed"}]},
    }
    found = jobs.state(job_id)
    assert (found.state, found.message) == ("PENDING", "waits in Kueue's queue research: 8 more GPUs needed")


@pytest.mark.parametrize(
    ("refuse", "kind", "expected"),
    [
        (403, "rayjobs", r"default/quick-1: Kubernetes does not allow it: rayjobs is forbidden.*access.yaml"),
        (403, "configmaps", r"the ConfigMap default/quick-1: Kubernetes does not allow it: configmaps is forbidden"),
        (500, "rayjobs", r"failed: etcdserver: request timed out. Try again"),
        (500, "configmaps", r"failed: etcdserver: request timed out. Try again"),
    ],
)
def test_nothing_stays_of_a_job_that_is_not_taken(cluster: Cluster, refuse: int, kind: str, expected: str) -> None:
    cluster.refuse["POST", kind] = refuse
    with pytest.raises(ShardyardError, match=expected) as caught:
        submit()
    assert cluster.objects == {}
    assert isinstance(caught.value, UsageError) == (refuse == 403)


def test_nothing_stays_where_the_answer_is_lost(cluster: Cluster) -> None:
    cluster.cut.add(("POST", "rayjobs"))
    with pytest.raises(ShardyardError, match="cannot be reached"):
        submit()
    assert ("delete", "rayjobs") in cluster.seen
    assert cluster.objects == {}


def test_what_may_have_stayed_is_named(cluster: Cluster) -> None:
    cluster.cut.add(("POST", "rayjobs"))
    cluster.refuse["DELETE", "rayjobs"] = 403
    with pytest.raises(ShardyardError, match=r"may exist nevertheless.*kubectl delete rayjob --namespace default q"):
        submit()


def test_a_job_of_the_same_name_is_left_alone(cluster: Cluster) -> None:
    submit(job_name="mine", run_id="first-1")
    with pytest.raises(UsageError, match=r'rayjobs "mine" already exists. Give the job another name with --name'):
        submit(job_name="mine", run_id="second-1")
    assert job_of(cluster, "mine")["metadata"]["annotations"]["shardyard/run"] == "first-1"
    # A server that fails after all does not make it delete another's job either.
    cluster.refuse["POST", "rayjobs"] = 500
    with pytest.raises(ShardyardError):
        submit(job_name="mine", run_id="second-1")
    assert cluster.names("rayjobs") == cluster.names("configmaps") == ["mine"]


def test_a_config_map_of_the_same_name_is_left_alone(cluster: Cluster) -> None:
    cluster.objects["configmaps", "default", "quick-1"] = {"metadata": {}}
    with pytest.raises(UsageError, match='configmaps "quick-1" already exists'):
        submit()
    assert cluster.names("rayjobs") == []
    assert cluster.names("configmaps") == ["quick-1"]


def test_ctrl_c_half_way_leaves_nothing(cluster: Cluster, tmp_path: Path) -> None:
    cluster.hang.add(("POST", "configmaps"))
    # A shell starts what it runs in the background with SIGINT ignored.
    handled = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    script = f"{handled}; from tests.e2e.test_kuberay_api import submit; submit()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        assert cluster.hanging.wait(PATIENCE_SECONDS), "it never came to the ConfigMap"
        assert cluster.names("rayjobs") == ["quick-1"]
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert "KeyboardInterrupt" in errors
    assert cluster.objects == {}


# -- clusters that lack something


def test_a_cluster_without_kuberay(cluster: Cluster) -> None:
    cluster.has_kuberay = False
    for ask in (submit, lambda: jobs.state("default/a"), jobs.jobs):
        with pytest.raises(UsageError, match=r"KubeRay's operator is not installed.*README\.md says how"):
            ask()


def test_a_cluster_whose_kuberay_knows_no_token(cluster: Cluster) -> None:
    cluster.knows_tokens_of_ray = False
    with pytest.raises(UsageError, match=r"older than 1\.5\.1, so its clusters have no tokens"):
        submit()
    assert cluster.objects == {}


def test_a_namespace_that_is_not_there(cluster: Cluster) -> None:
    with pytest.raises(UsageError, match=r'namespaces "none" not found. Create the namespace, or name another'):
        submit(CLAIM, "cluster.kubernetes.namespace=none")


def test_a_token_that_has_expired(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = json.loads((tmp_path / "kubeconfig").read_text(encoding="utf-8"))
    write_kubeconfig(tmp_path / "expired", config["clusters"][0]["cluster"]["server"], "old")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "expired"))
    with pytest.raises(UsageError, match="does not accept the credentials") as caught:
        submit()
    assert "old" not in str(caught.value)


def test_a_server_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        write_kubeconfig(tmp_path / "config", f"http://127.0.0.1:{taken.getsockname()[1]}")
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
        with pytest.raises(ShardyardError, match=r"cannot be reached: .*refused.*kubectl get nodes") as caught:
            submit()
        assert "may exist" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "context", "expected"),
    [
        (None, None, "no Kubernetes cluster can be used from here: "),
        ("{", None, "no Kubernetes cluster can be used from here: "),
        ("", "other", "no Kubernetes cluster can be used from here: .*other"),
    ],
)
def test_no_usable_kubeconfig(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, context: str, expected: str
) -> None:
    path = tmp_path / "kubeconfig"
    if text is None:
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    elif text:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=expected):
        submit(address=context)


# -- jobs that are there


@pytest.mark.parametrize(
    ("status", "state", "message", "code"),
    [
        ({}, "PENDING", "waits for KubeRay's operator to start it", None),
        ({"jobDeploymentStatus": "Initializing"}, "PENDING", "waits for its pods to start", None),
        ({"jobDeploymentStatus": "Retrying"}, "PENDING", "waits for a new cluster after a failure", None),
        ({"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}, "RUNNING", "", None),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED", "message": "Done."}, "SUCCEEDED", "Done.", 0),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}, "STOPPED", "", 130),
        (
            {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "message": "failed with exit code 124, last"},
            "FAILED",
            "failed with exit code 124, last",
            124,
        ),
        ({"jobDeploymentStatus": "Failed", "reason": "DeadlineExceeded"}, "FAILED", "DeadlineExceeded", 1),
    ],
)
def test_states_keep_the_names_of_ray(
    cluster: Cluster, status: dict[str, str], state: str, message: str, code: int | None
) -> None:
    submit()
    job_of(cluster)["status"] = status
    found = jobs.state("quick-1")
    assert (found.state, found.message, found.exit_code) == (state, message, code)
    assert (found.id, found.run_id, found.recipe) == ("default/quick-1", "quick-1", "gpt-quickstart")


def test_jobs_are_listed_over_all_pages_the_newest_first(cluster: Cluster) -> None:
    for number in range(5):
        submit(run_id=f"quick-{number}")
    cluster.objects["rayjobs", "default", "of-somebody-else"] = {"metadata": {"labels": {}}}
    assert [job.run_id for job in jobs.jobs()] == [f"quick-{number}" for number in (4, 3, 2, 1, 0)]
    assert jobs.jobs("research") == []


def test_a_job_that_is_not_there(cluster: Cluster) -> None:
    for ask in (jobs.state, jobs.cancel, lambda job_id: next(jobs.logs(job_id))):
        with pytest.raises(UsageError, match=r"the RayJob default/none: it is not there"):
            ask("default/none")
    with pytest.raises(UsageError, match="'a/b/c' is not the id of a Kubernetes job"):
        jobs.state("a/b/c")


def test_logs_are_those_of_the_last_pod_that_submitted(cluster: Cluster) -> None:
    submit()
    with pytest.raises(UsageError, match="default/quick-1 is PENDING and has no output: waits for KubeRay"):
        next(jobs.logs("quick-1"))
    asked: list[float] = []

    def start_pods(seconds: float) -> None:
        asked.append(seconds)
        for number in (1, 2):
            metadata = {"name": f"pod-{number}", "labels": {"job-name": "quick-1"}}
            metadata["creationTimestamp"] = f"2026-01-02T03:04:0{number}Z"  # type: ignore[assignment]
            cluster.objects["pods", "default", f"pod-{number}"] = {"metadata": metadata, "status": {"phase": "Running"}}
            cluster.logs[f"pod-{number}"] = [f"from {number}", "Über", ""]

    assert list(jobs.logs("quick-1", follow=True, sleep=start_pods)) == ["from 2", "Über", ""]
    assert len(asked) == 1


def test_the_role_of_the_example_allows_what_is_asked_and_no_more(cluster: Cluster) -> None:
    job_id = submit(*QUEUED)
    job_of(cluster)["status"] = {"jobDeploymentStatus": "Suspended"}
    jobs.jobs()
    pod = {"name": "pod-1", "labels": {"job-name": "quick-1"}, "creationTimestamp": "2026-01-02T03:04:05Z"}
    cluster.objects["pods", "default", "pod-1"] = {"metadata": pod, "status": {"phase": "Running"}}
    cluster.logs["pod-1"] = ["a line"]
    assert list(jobs.logs(job_id)) == ["a line"]
    jobs.cancel(job_id)
    role = next(yaml.safe_load_all((ROOT / "cluster/kuberay/access.yaml").read_text(encoding="utf-8")))
    allowed = {(verb, kind) for rule in role["rules"] for kind in rule["resources"] for verb in rule["verbs"]}
    assert set(cluster.seen) == allowed


# -- the whole way


def test_the_example_of_a_cluster_is_what_its_first_line_writes(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "cluster/kuberay/raycluster.yaml").read_text(encoding="utf-8")
    command = shlex.split(text.splitlines()[0].removeprefix("# "))
    assert command[:3] == ["python", "-m", "shardyard.launch.schedulers.kuberay.cluster"]
    assert print_cluster(command[3:]) == 0
    assert capsys.readouterr().out == text


def test_the_command_line(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["submit", "gpt/quickstart", "--on", "kuberay", "-s", CLAIM, "--name", "My_first", "-q"]
    assert run(command) == 0
    assert capsys.readouterr().out == "default/my-first\n"
    assert cluster.names("rayjobs") == cluster.names("configmaps") == ["my-first"]
    assert run(command) == 2
    assert "already exists" in capsys.readouterr().err


def test_the_manifests_of_a_dry_run_can_be_piped(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["submit", "gpt/quickstart", "--on", "kuberay", "-s", CLAIM, "--dry-run", "-"]) == 0
    config_map, job = yaml.safe_load_all(capsys.readouterr().out)
    assert config_map["metadata"]["name"] == job["metadata"]["name"]
    assert run(["submit", "gpt/quickstart", "--on", "kuberay", "--dry-run", "-"]) == 2
    assert "cluster.kubernetes.runs_claim: a job needs" in capsys.readouterr().err
