"""Manifests of KubeRay: what they say, that their schemas take them, and that kubectl reads what was meant.

`python -m tests.unit.test_kuberay_render` in the root of the repository writes the golden files anew.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from shardyard.errors import RecipeError
from shardyard.launch.jobs.submission import SubmitRequest
from shardyard.launch.schedulers.kuberay import jobs, render
from shardyard.launch.schedulers.kuberay.cluster import main as print_cluster
from shardyard.launch.schedulers.kuberay.render import describe, render_cluster, render_job
from shardyard.launch.schedulers.kuberay.yaml import to_yaml
from shardyard.recipe.loading.load import load_recipe
from support.kuberay.cases import CASES, CLAIM, JOB_FILE, case, pod_templates, recipe_and_plan, spec
from support.kuberay.models import model_problems, mount_problems
from support.kuberay.schema import schema_problems
from support.waiting import PATIENCE_SECONDS

GOLDEN = Path(__file__).parents[2] / "golden" / "kuberay"
CLUSTER = Path(__file__).resolve().parents[4] / "cluster" / "kuberay"
Data = dict[str, Any]


def say_nothing(line: str) -> None:
    pass


def text_of(name: str) -> str:
    job = case(name)
    return to_yaml(render_job(job), describe(job.recipe, job.plan))


def rayjob(name: str, *overrides: str) -> Data:
    return render_job(spec(name, CLAIM, *overrides))[1]


def workers(manifest: Data) -> Data:
    return pod_templates(manifest)["workers"]["spec"]


def limits(manifest: Data) -> Data:
    return workers(manifest)["containers"][0]["resources"]["limits"]


# -- all of a manifest


@pytest.mark.parametrize("name", CASES)
def test_manifests_are_those_of_the_golden_file(name: str) -> None:
    assert text_of(name) == (GOLDEN / f"{name}.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", CASES)
def test_the_schemas_take_every_field(name: str) -> None:
    config_map, job = render_job(case(name))
    assert schema_problems(job) == []
    assert list(model_problems(config_map, "V1ConfigMap")) == []
    for template in pod_templates(job).values():
        assert list(model_problems(template, "V1PodTemplateSpec")) == []
        assert list(mount_problems(template["spec"])) == []


def test_the_schemas_take_a_bare_cluster() -> None:
    recipe, plan = recipe_and_plan("gpt/llama2-7b", "cluster.kubernetes.queue=research")
    cluster = render_cluster("interactive", recipe, plan)
    assert schema_problems(cluster) == []
    assert cluster["spec"]["suspend"] is True
    for template in pod_templates(cluster).values():
        assert list(model_problems(template, "V1PodTemplateSpec")) == []
        assert list(mount_problems(template["spec"])) == []
        assert "shardyard.launch.schedulers.kuberay.stop" not in str(template), "there is no run to wait for"


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("spec.backofLimit", 1, "backofLimit"),
        ("spec.ttlSecondsAfterFinished", "60", "is not of type 'integer'"),
        ("spec.shutdownAfterJobFinishes", False, "not allowed to be suspended"),
        ("spec.rayClusterSpec.authOptions.mode", "password", "is not one of"),
        ("spec.rayClusterSpec.workerGroupSpecs.0.rayStartParams.num-cpus", 4, "is not of type 'string'"),
        ("spec.rayClusterSpec.workerGroupSpecs.0.minReplicas", 99, "replicas lie outside"),
        ("metadata.name", "x" * 48, "too long"),
        ("metadata.labels.a b", "", "does not match"),
    ],
)
def test_the_schema_of_kuberay_sees_what_is_wrong(path: str, value: Any, expected: str) -> None:
    job = render_job(case("everything"))[1]
    _put(job, path, value)
    assert expected in "\n".join(schema_problems(job))


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("spec.containers.0.imag", "a", "V1Container has no such field"),
        ("spec.terminationGracePeriodSeconds", "30", "is no int"),
        ("spec.containers.0.resources.limits.memory", "8GiB", "is no quantity"),
        ("spec.containers.0.resources.requests.nvidia\0com/gpu", "1", "requests and limits of nvidia.com/gpu differ"),
        ("spec.volumes.0.emptyDir.size", "1Gi", "V1EmptyDirVolumeSource has no such field"),
    ],
)
def test_the_models_of_kubernetes_see_what_is_wrong(path: str, value: Any, expected: str) -> None:
    template = pod_templates(render_job(case("everything"))[1])["workers"]
    _put(template, path, value)
    assert expected in "\n".join(model_problems(template, "V1PodTemplateSpec"))


def _put(data: Any, path: str, value: Any) -> None:
    *folders, last = (part.replace("\0", ".") for part in path.split("."))
    for part in folders:
        data = data[int(part)] if isinstance(data, list) else data[part]
    data[last] = value


# -- YAML


@pytest.mark.parametrize("name", CASES)
def test_kubectl_reads_what_was_meant(name: str) -> None:
    assert tuple(yaml.safe_load_all(text_of(name))) == render_job(case(name))


@pytest.mark.parametrize("text", ["on", "NO", "y", "1e3", "0o17", "0x1F", "1_000", "2026-01-02", "~", "1:30", ".5"])
def test_text_stays_text_in_yaml_1_1(text: str) -> None:
    data = {"key": {text: text}}
    assert yaml.safe_load(to_yaml([data], [])) == data


def test_comments_are_comments() -> None:
    assert to_yaml([{"a": "b"}], ["one\nkind: Pod"]) == "# one kind: Pod\n---\na: b\n"


# -- pods


def test_workers_fill_nodes_of_eight_gpus() -> None:
    job = rayjob("gpt/llama2-7b", "cluster.cpus_per_worker=12")
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"], group["numOfHosts"]) == (16, 16, 16, 1)
    assert group["rayStartParams"] == {"num-cpus": "96", "num-gpus": "8", "object-store-memory": str(2 * 1024**3)}
    assert (limits(job)["nvidia.com/gpu"], limits(job)["cpu"]) == ("8", "96")
    assert job["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is False


def test_no_rank_runs_on_the_head() -> None:
    head = rayjob("gpt/llama2-7b")["spec"]["rayClusterSpec"]["headGroupSpec"]
    assert (head["rayStartParams"]["num-cpus"], head["rayStartParams"]["num-gpus"]) == ("0", "0")
    assert set(head["template"]["spec"]["containers"][0]["resources"]["limits"]) == {"cpu", "memory"}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["cluster.workers=6"], (1, "6")),
        (["cluster.workers=12", "train.global_batch=1008", "data.streams=12"], (2, "6")),
        (["cluster.workers_per_node=4"], (32, "4")),
        (["cluster.placement=strict_spread"], (128, "1")),
        (["cluster.gpus_per_worker=0.5", "cluster.workers=1"], (1, "1")),
    ],
)
def test_gpus_of_a_pod(overrides: list[str], expected: tuple[int, str]) -> None:
    streams = (
        [] if any("streams" in override for override in overrides) else ["data.streams=384", "train.global_batch=768"]
    )
    job = rayjob("gpt/llama2-7b", *streams, *overrides)
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert (group["replicas"], limits(job)["nvidia.com/gpu"]) == expected


def test_pods_without_gpus_ask_for_none_and_for_no_rdma() -> None:
    job = rayjob("gpt/quickstart", "cluster.kubernetes.rdma_resource=rdma/hca")
    assert set(limits(job)) == {"cpu", "memory"}
    assert "tolerations" not in workers(job)
    assert "IPC_LOCK" not in json.dumps(job)


def test_ranks_that_do_not_fill_pods_are_refused_with_what_would() -> None:
    with pytest.raises(RecipeError, match=r"workers_per_node: pods with 3 rank.*; set it to one of 1, 2, 4, 8, 16"):
        rayjob("gpt/llama2-7b", "cluster.workers_per_node=3")


def test_ranks_that_share_experts_share_a_pod() -> None:
    recipe, plan = recipe_and_plan("gpt/llama2-7b", "cluster.workers_per_node=4")
    recipe = recipe.model_copy(update={"parallel": recipe.parallel.model_copy(update={"expert": 8})})
    with pytest.raises(RecipeError, match="groups of 8 ranks that share layers"):
        render.pods_of(recipe, plan)


def test_memory_holds_shared_memory_and_object_store() -> None:
    gib = 1024**3
    fields = ("memory_per_worker=10GiB", "shared_memory=5GiB", "object_store_memory=3GiB")
    job = rayjob("gpt/quickstart", *(f"cluster.kubernetes.{field}" for field in fields))
    assert limits(job)["memory"] == f"{2 * 10 + 5 + 1}Gi"
    (memory,) = [volume["emptyDir"] for volume in workers(job)["volumes"] if "emptyDir" in volume]
    assert memory == {"medium": "Memory", "sizeLimit": "5Gi"}
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["rayStartParams"]["object-store-memory"] == str(3 * gib)
    assert {"name": "shared-memory", "mountPath": "/dev/shm"} in workers(job)["containers"][0]["volumeMounts"]


def test_an_object_store_larger_than_the_shared_memory_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"shared_memory: 1GiB is less than .*object_store_memory \(2GiB\)"):
        rayjob("gpt/quickstart", "cluster.kubernetes.shared_memory=1GiB")


def test_memory_grows_with_what_a_rank_holds() -> None:
    def amount(*overrides: str) -> int:
        return int(limits(rayjob("gpt/llama2-7b", *overrides))["memory"].removesuffix("Gi"))

    assert amount("zero.offload_parameters=true") > amount()
    assert amount("zero.stage=2") > amount() + 8 * 20, "below stage 3 each rank builds the weights in fp32"


def test_requests_are_limits_and_nobody_is_root() -> None:
    for template in pod_templates(render_job(case("everything"))[1]).values():
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        (container,) = pod["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]


def test_rdma_comes_with_locked_memory_on_workers_alone() -> None:
    wanted = ["cluster.kubernetes.rdma_resource=vpc.amazonaws.com/efa"]
    job = rayjob("gpt/llama2-7b", *wanted)
    assert limits(job)["vpc.amazonaws.com/efa"] == "1"
    assert workers(job)["containers"][0]["securityContext"]["capabilities"]["add"] == ["IPC_LOCK"]
    assert "IPC_LOCK" not in json.dumps([pod_templates(job)["head"], pod_templates(job)["submitter"]])
    off = json.dumps(rayjob("gpt/llama2-7b", *wanted, "cluster.network.rdma=off"))
    assert "amazonaws" not in off
    assert "IPC_LOCK" not in off


def test_secrets_come_by_reference_to_the_pods_that_train() -> None:
    templates = pod_templates(render_job(case("everything"))[1])
    expected = [{"secretRef": {"name": "wandb"}}, {"secretRef": {"name": "hugging-face"}}]
    for name in ("head", "workers"):
        assert templates[name]["spec"]["containers"][0]["envFrom"] == expected
    assert "secretRef" not in json.dumps(templates["submitter"])


def test_a_service_account_is_given_or_no_token_is_mounted() -> None:
    for template in pod_templates(render_job(case("everything"))[1]).values():
        assert template["spec"]["serviceAccountName"] == "trainer"
    for template in pod_templates(render_job(case("cpu"))[1]).values():
        assert template["spec"]["automountServiceAccountToken"] is False


def test_spread_pods_avoid_each_other() -> None:
    (term,) = workers(rayjob("gpt/llama2-7b", "cluster.placement=strict_spread"))["affinity"]["podAntiAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]
    assert term["labelSelector"] == {"matchLabels": {"shardyard/job": "run-1"}}
    assert "affinity" not in workers(rayjob("gpt/llama2-7b"))


def test_a_pod_that_is_to_go_waits_for_a_checkpoint_and_stops_ray() -> None:
    job = rayjob("gpt/llama2-7b")
    for name, driver in (("head", " --driver"), ("workers", "")):
        pod = pod_templates(job)[name]["spec"]
        shell, option, command = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert (shell, option) == ("/bin/sh", "-c")
        wait, stop = command.split("; ")
        seconds = int(wait.removesuffix(driver).rpartition(" ")[2])
        assert wait == f"python -m shardyard.launch.schedulers.kuberay.stop /runs/run-1 {seconds}{driver}"
        assert stop.startswith("ray stop")
        assert pod["terminationGracePeriodSeconds"] > seconds >= 120


def test_larger_states_get_more_time_for_a_checkpoint() -> None:
    large, small = (workers(rayjob(name)) for name in ("gpt/llama2-7b", "gpt/quickstart"))
    assert large["terminationGracePeriodSeconds"] > small["terminationGracePeriodSeconds"]


# -- the job


def test_the_driver_gets_its_job_from_a_config_map() -> None:
    config_map, job = render_job(spec("gpt/quickstart", CLAIM))
    assert config_map["data"] == {"job.json": JOB_FILE}
    assert job["spec"]["entrypoint"] == "python -m shardyard.launch.schedulers.kuberay.entry /etc/shardyard/job.json"
    head = pod_templates(job)["head"]["spec"]
    assert {"name": "job", "configMap": {"name": config_map["metadata"]["name"]}} in head["volumes"]
    assert {"name": "job", "mountPath": "/etc/shardyard", "readOnly": True} in head["containers"][0]["volumeMounts"]


def test_runs_lie_on_the_claim_in_all_pods_that_train() -> None:
    job = rayjob("gpt/quickstart")
    for name in ("head", "workers"):
        pod = pod_templates(job)[name]["spec"]
        assert {"name": "runs", "persistentVolumeClaim": {"claimName": "shardyard-runs"}} in pod["volumes"]
        assert {"name": "SHARDYARD_RUNS", "value": "/runs"} in pod["containers"][0]["env"]


def test_a_queue_holds_the_job_until_it_is_admitted() -> None:
    job = render_job(case("everything"))[1]
    assert job["spec"]["suspend"] is True
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research-queue"
    assert job["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] == "high"
    config_map, free = render_job(case("gpu-nodes"))
    assert "suspend" not in free["spec"]
    assert "kueue" not in json.dumps([config_map, free])


def test_clusters_take_a_token() -> None:
    assert rayjob("gpt/quickstart")["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}


def test_nothing_of_the_cluster_stays_when_the_job_is_over() -> None:
    settings = rayjob("gpt/quickstart", "cluster.kubernetes.ttl_seconds=60")["spec"]
    assert (settings["shutdownAfterJobFinishes"], settings["ttlSecondsAfterFinished"]) == (True, 60)


@pytest.mark.parametrize(
    ("overrides", "retries", "deadline"),
    [
        ([], 0, None),
        (["job.retries=3"], 3, None),
        (["job.retries=3", "job.on_preempted=end"], 0, None),
        (["job.time_limit=1.5h"], 0, 1800 + 5400 + 900),
        (["job.time_limit=90m", "job.retries=2"], 2, 1800 + 3 * (5400 + 900)),
    ],
)
def test_retries_and_time_limit(overrides: list[str], retries: int, deadline: int | None) -> None:
    settings = rayjob("gpt/quickstart", *overrides)["spec"]
    assert settings["backoffLimit"] == retries
    assert settings.get("activeDeadlineSeconds") == deadline


def test_names_and_tags_are_kept_readable() -> None:
    job = render_job(case("everything"))[1]
    metadata = job["metadata"]
    assert metadata["name"].startswith("llama-2-7b-on-every-option-20260102")
    assert metadata["labels"]["shardyard/recipe"] == "Llama_2.7B-on-Every.Option"
    assert metadata["labels"]["shardyard/tag-long-context"] == "true"
    assert metadata["annotations"]["shardyard/tags"] == "ablation, Long context"
    assert metadata["annotations"]["shardyard/run"] == "Llama_2.7B-on-Every.Option-20260102-030405-0a1b"


def test_a_job_that_no_config_map_holds_is_refused() -> None:
    large = spec("gpt/quickstart", CLAIM)
    large = render.RayJobInputs(large.name, large.run_id, large.recipe, large.plan, "x" * 1_000_001)
    with pytest.raises(RecipeError, match="a ConfigMap holds 1 MiB"):
        render_job(large)


# -- what Kubernetes would not take


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("cluster.kubernetes.runs_claim=null", "runs_claim: a job needs a persistent volume claim"),
        ("cluster.kubernetes.runs_claim=My Claim", "runs_claim: 'My Claim' is not a valid name of a Kubernetes object"),
        ("cluster.kubernetes.namespace=team.one", "namespace: 'team.one' is not a valid namespace"),
        ("cluster.kubernetes.service_account=Trainer", "service_account: 'Trainer' is not a valid name"),
        ("cluster.kubernetes.secrets=[wandb, WANDB_API_KEY]", "secrets: 'WANDB_API_KEY' is not a valid name"),
        ("cluster.kubernetes.queue=our queue", "queue: 'our queue' is not a valid label value"),
        ("cluster.kubernetes.rdma_resource=hca", "rdma_resource: 'hca' is not an extended resource"),
        ("cluster.kubernetes.node_selector={a b: c}", "node_selector: a b: c is not a valid node label"),
        ("job.priority=high", "job.priority: on Kubernetes priorities need Kueue"),
    ],
)
def test_what_kubernetes_would_refuse_is_refused_before(override: str, expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        rayjob("gpt/quickstart", override)
    assert expected in str(caught.value)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        rayjob("gpt/quickstart", "cluster.kubernetes.namespace=A", "cluster.kubernetes.queue=b c", "job.priority=a b")
    assert len(caught.value.problems) == 3


# -- submitting without a cluster


def request(tmp_path: Path, **fields: Any) -> SubmitRequest:
    loaded = load_recipe("gpt/quickstart", [CLAIM])
    plan = recipe_and_plan("gpt/quickstart", CLAIM)[1]
    given = {"job_name": "gpt-quickstart", "run_id": "quick-1", "dry_run": tmp_path / "job.yaml", **fields}
    return SubmitRequest("gpt/quickstart", (CLAIM,), loaded, plan, tmp_path, **given)


def test_a_dry_run_writes_the_manifests(tmp_path: Path) -> None:
    said: list[str] = []
    assert jobs.submit(request(tmp_path), said.append) == ""
    text = (tmp_path / "job.yaml").read_text(encoding="utf-8")
    assert text.startswith("# shardyard submit gpt/quickstart --on kuberay, Shardyard ")
    config_map, job = yaml.safe_load_all(text)
    job_file = json.loads(config_map["data"]["job.json"])
    assert (job_file["run_id"], job_file["runs_dir"], job_file["name"]) == ("quick-1", "/runs", "gpt-quickstart")
    assert schema_problems(job) == []
    assert any("cluster.gpus_per_worker=1" in line for line in said)
    assert said[-1] == f"wrote {tmp_path / 'job.yaml'}; `kubectl create -f {tmp_path / 'job.yaml'}` submits it"


def test_a_dry_run_to_standard_output_is_manifests_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert jobs.submit(request(tmp_path, dry_run=Path("-"), job_name="My job"), say_nothing) == ""
    _, job = yaml.safe_load_all(capsys.readouterr().out)
    assert (job["metadata"]["name"], job["metadata"]["annotations"]["shardyard/run"]) == ("my-job", "quick-1")


def test_a_dry_run_to_a_folder_that_is_not_there_is_explained(tmp_path: Path) -> None:
    with pytest.raises(jobs.UsageError, match="cannot be written: No such file or directory"):
        jobs.submit(request(tmp_path, dry_run=tmp_path / "none" / "job.yaml"), say_nothing)


def test_rendering_imports_neither_kubernetes_nor_torch_nor_ray() -> None:
    script = (
        "import sys; from shardyard.launch.schedulers.kuberay import cluster, jobs\n"
        "print(sorted({'kubernetes', 'torch', 'ray', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=PATIENCE_SECONDS
    )
    assert done.stdout == "[]\n"


def test_a_cluster_without_a_recipe_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert print_cluster(["gpt/none-such"]) == 2
    assert "no such file" in capsys.readouterr().err


# -- the files of cluster/kuberay


def documents(name: str) -> list[Data]:
    return list(yaml.safe_load_all((CLUSTER / name).read_text(encoding="utf-8")))


def test_the_example_of_a_cluster_is_valid() -> None:
    (cluster,) = documents("raycluster.yaml")
    assert schema_problems(cluster) == []
    for template in pod_templates(cluster).values():
        assert list(model_problems(template, "V1PodTemplateSpec")) == []


def test_the_example_of_a_claim_and_of_a_role_are_valid() -> None:
    (claim,) = documents("claim.yaml")
    assert list(model_problems(claim, "V1PersistentVolumeClaim")) == []
    role, binding = documents("access.yaml")
    assert list(model_problems(role, "V1Role")) == []
    assert list(model_problems(binding, "V1RoleBinding")) == []


def test_the_queues_of_the_example_cover_what_pods_ask_for() -> None:
    found = documents("kueue.yaml")
    flavors = {item["metadata"]["name"] for item in found if item["kind"] == "ResourceFlavor"}
    queues = {item["metadata"]["name"]: item["spec"] for item in found if item["kind"] == "ClusterQueue"}
    asked = set(limits(render_job(case("everything"))[1]))
    for queue in queues.values():
        (group,) = queue["resourceGroups"]
        assert asked <= set(group["coveredResources"])
        for flavor in group["flavors"]:
            assert flavor["name"] in flavors
            assert [item["name"] for item in flavor["resources"]] == group["coveredResources"]
    assert {item["spec"]["clusterQueue"] for item in found if item["kind"] == "LocalQueue"} == set(queues)


if __name__ == "__main__":
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for golden in CASES:
        (GOLDEN / f"{golden}.yaml").write_text(text_of(golden), encoding="utf-8")
