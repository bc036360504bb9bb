"""Manifests of every kind: what the schemas allow, what they promise, what is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import ValidationError

from jobs.launch.job import JobConfig, Volume
from jobs.launch.kubernetes import (
    KINDS,
    cancel_command,
    logs_command,
    render,
    status_command,
    submit_command,
)
from pipeline.errors import ConfigError
from tests.support.kubernetes_schemas import validate

RAY = ("rayjob", "ray-cluster")
TRAINING = tuple(kind for kind in KINDS if kind not in RAY)
DATA = Volume(source="pvc:data", mount="/home/prefixworks/data")


def job_for(kind: str, folder: Path, **settings: Any) -> JobConfig:
    recipe = folder / "recipe.yaml"
    if not recipe.exists():
        recipe.write_text("name: grounding\n")
    values: dict[str, Any] = {
        "name": "grounding",
        "stage": "prepare" if kind in RAY else "train",
        "recipe": str(recipe),
        "nodes": 1 if kind in RAY else 3,
        "accelerators_per_node": 0 if kind in RAY else 4,
        "memory_gb": 64.0,
        "image": "registry.example:5000/prefixworks:0.1",
        "secrets": ["store", "mlflow"],
        "volumes": [DATA, Volume(source="/scratch", mount="/scratch", read_only=True)],
    }
    return JobConfig(**(values | settings))


def objects(job: JobConfig, kind: str, **options: Any) -> dict[str, dict[str, Any]]:
    loaded = [yaml.safe_load(text) for text in render(job, kind, **options).values()]
    return {each["kind"]: each for each in loaded}


def pod_templates(value: Any) -> list[dict[str, Any]]:
    """All pod templates inside a manifest, wherever its kind keeps them."""
    if isinstance(value, list):
        return [found for each in value for found in pod_templates(each)]
    if not isinstance(value, dict):
        return []
    here = [value] if "containers" in value.get("spec", {}) else []
    return here + [found for each in value.values() for found in pod_templates(each)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_valid_in_every_field(kind: str, tmp_path: Path) -> None:
    job = job_for(kind, tmp_path)
    for manifest in objects(job, kind).values():
        validate(manifest)
    bare = replace(
        job, nodes=1, accelerators_per_node=0, memory_gb=None, secrets=[], volumes=[DATA]
    )
    for manifest in objects(bare, kind).values():
        validate(manifest)


@pytest.mark.parametrize("kind", KINDS)
def test_the_schemas_notice_a_wrong_field_wherever_it_stands(kind: str, tmp_path: Path) -> None:
    for manifest in objects(job_for(kind, tmp_path), kind).values():
        with pytest.raises(ValidationError):
            validate({**manifest, "specs": {}})
        for template in pod_templates(manifest):
            template["spec"]["terminationGracePeriod"] = 30
            with pytest.raises(ValidationError):
                validate(manifest)
            del template["spec"]["terminationGracePeriod"]


def test_a_kind_without_schema_fails() -> None:
    unknown = {"apiVersion": "ray.io/v2", "kind": "RayJob", "metadata": {"name": "a"}, "spec": {}}
    with pytest.raises(kubernetes_validate.SchemaNotFoundError):
        validate(unknown)


@pytest.mark.parametrize("kind", KINDS)
def test_pods_are_without_privileges_and_have_shared_memory_and_time_to_save(
    kind: str, tmp_path: Path
) -> None:
    job = job_for(kind, tmp_path, signal_before_end_s=120)
    templates = [
        each
        for each in pod_templates(list(objects(job, kind).values()))
        if each["spec"]["containers"][0]["name"] != "ray-job-submitter"
    ]
    assert templates
    for template in templates:
        spec, (container,) = template["spec"], template["spec"]["containers"]
        assert spec["terminationGracePeriodSeconds"] == 120
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        volumes = {each["name"]: each for each in spec["volumes"]}
        mounts = {each["mountPath"]: each for each in container["volumeMounts"]}
        shared = volumes[mounts["/dev/shm"]["name"]]
        assert shared["emptyDir"]["medium"] == "Memory"
        assert volumes[mounts[DATA.mount]["name"]]["persistentVolumeClaim"]["claimName"] == "data"
        assert mounts["/scratch"]["readOnly"] is True
        assert mounts["/etc/prefixworks"]["readOnly"] is True
        assert container["envFrom"] == [
            {"secretRef": {"name": "store"}},
            {"secretRef": {"name": "mlflow"}},
        ]
        assert all(
            re.fullmatch("64000M", container["resources"][each]["memory"])
            for each in ("requests", "limits")
        )


@pytest.mark.parametrize("kind", TRAINING)
def test_training_asks_for_its_accelerators_and_starts_a_rank_on_each(
    kind: str, tmp_path: Path
) -> None:
    for template in pod_templates(list(objects(job_for(kind, tmp_path), kind).values())):
        container = template["spec"]["containers"][0]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "4"
        assert container["resources"]["requests"]["cpu"] == "16"
        assert container["command"] == ["python", "-m", "jobs.launch.kubernetes.entry"]
        assert {"--nodes=3", "--ranks-per-node=4"} < set(container["args"])


def test_an_indexed_job_does_not_count_what_is_no_failure(tmp_path: Path) -> None:
    job = job_for("indexed-job", tmp_path, max_restarts=2)
    found = objects(job, "indexed-job")
    spec = found["Job"]["spec"]
    saved, evicted, impossible = spec["podFailurePolicy"]["rules"]
    assert (saved["action"], saved["onExitCodes"]["values"]) == ("Ignore", [75])
    assert evicted["action"] == "Ignore"
    assert evicted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert (impossible["action"], impossible["onExitCodes"]["values"]) == ("FailJob", [2])
    # A rank that fails takes the pods of all three nodes with it, twice.
    assert spec["backoffLimit"] == 6
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    # The first pod is found under the name that the others are told.
    environment = {
        each["name"]: each["value"] for each in spec["template"]["spec"]["containers"][0]["env"]
    }
    service = found["Service"]
    host, subdomain = environment["MASTER_ADDR"].split(".")
    assert (host, subdomain) == ("grounding-0", service["metadata"]["name"])
    assert spec["template"]["spec"]["subdomain"] == subdomain
    assert service["spec"]["ports"][0]["port"] == int(environment["MASTER_PORT"])
    labels = spec["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()


@pytest.mark.parametrize(
    ("kind", "holder"), [("jobset", "JobSet"), ("trainjob", "TrainingRuntime")]
)
def test_a_jobset_starts_all_pods_again_and_counts_failures_only(
    kind: str, holder: str, tmp_path: Path
) -> None:
    spec = objects(job_for(kind, tmp_path, max_restarts=2), kind)[holder]["spec"]
    spec = spec.get("template", {}).get("spec", spec)
    assert spec["failurePolicy"]["maxRestarts"] == 2
    free, last = spec["failurePolicy"]["rules"]
    assert free["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert free["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert (last["onJobFailureReasons"], last["action"]) == (["DeadlineExceeded"], "FailJobSet")
    (replicated,) = spec["replicatedJobs"]
    inner = replicated["template"]["spec"]
    assert inner["backoffLimit"] == 0
    rules = inner["podFailurePolicy"]["rules"]
    assert [each["action"] for each in rules] == ["FailJob", "FailJob"]
    assert rules[0]["onExitCodes"]["values"] == [75]
    environment = {
        each["name"]: each["value"] for each in inner["template"]["spec"]["containers"][0]["env"]
    }
    pod = f"grounding-{replicated['name']}-0-0"
    assert environment["MASTER_ADDR"] == f"{pod}.{spec['network']['subdomain']}"


def test_a_rayjob_has_its_workers_and_nothing_of_the_user_in_its_entry_point(
    tmp_path: Path,
) -> None:
    job = job_for("rayjob", tmp_path, overrides=["workers=$(reboot)"])
    spec = objects(job, "rayjob", ray_workers=5)["RayJob"]["spec"]
    assert spec["entrypoint"] == (
        "python -m jobs.launch.kubernetes.entry /etc/prefixworks/arguments.json"
    )
    cluster = spec["rayClusterSpec"]
    (group,) = cluster["workerGroupSpecs"]
    assert {group[each] for each in ("replicas", "minReplicas", "maxReplicas")} == {5}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    # 2 GiB of shared memory, of which Ray leaves some free.
    assert int(group["rayStartParams"]["object-store-memory"]) < 2 * 2**30
    roomy = replace(job, volumes=[DATA, Volume(source="memory:32Gi", mount="/dev/shm")])
    (group,) = objects(roomy, "ray-cluster")["RayCluster"]["spec"]["workerGroupSpecs"]
    assert 24 * 2**30 < int(group["rayStartParams"]["object-store-memory"]) < 32 * 2**30
    assert len(group["template"]["spec"]["volumes"]) == 3


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        ("indexed-job", {"image": None}, "image = null"),
        ("indexed-job", {"name": "7b"}, "must begin with a letter"),
        ("rayjob", {"name": "a" * 48}, "has 48 characters; rayjob takes 47"),
        ("ray-cluster", {"name": "a" * 51}, "has 51 characters; ray-cluster takes 50"),
        ("rayjob", {"stage": "train"}, "stage = train: a rayjob runs prepare or features"),
        ("rayjob", {"accelerators_per_node": 1}, "a rayjob computes on CPU; take 0"),
        ("pytorchjob", {"stage": "evaluate", "nodes": 1}, "a pytorchjob runs train"),
        ("jobset", {"secrets": ["Store/Key"]}, "must be the name of a Kubernetes secret"),
        ("jobset", {"environment": {"RANK": "0"}}, "environment.RANK: every rank gets its own"),
        ("jobset", {"volumes": []}, "training needs one that can be written"),
        (
            "jobset",
            {"volumes": [replace(DATA, read_only=True)]},
            "training needs one that can be written",
        ),
        ("jobset", {"volumes": [DATA, DATA]}, "volumes[1].mount"),
        ("jobset", {"volumes": [replace(DATA, source="pvc:Da ta")]}, "volumes[0].source"),
        ("jobset", {"volumes": [replace(DATA, source="memory:lots")]}, "volumes[0].source"),
        ("jobset", {"volumes": [replace(DATA, source="/a/../etc")]}, "volumes[0].source"),
        ("jobset", {"volumes": [replace(DATA, mount="/a:b")]}, "volumes[0].mount"),
        ("jobset", {"volumes": [replace(DATA, mount="/etc/prefixworks/")]}, "volumes[0].mount"),
        ("jobset", {"recipe": "nowhere.yaml"}, "recipe = 'nowhere.yaml': No such file"),
    ],
)
def test_what_kubernetes_would_refuse_is_said_before(
    kind: str, settings: dict[str, Any], words: str, tmp_path: Path
) -> None:
    job = job_for(kind, tmp_path, **({"nodes": 1} | settings))
    with pytest.raises(ConfigError, match=re.escape(words)):
        render(job, kind)


def test_a_resolved_recipe_takes_the_place_of_the_file(tmp_path: Path) -> None:
    job = job_for("jobset", tmp_path, recipe="nowhere.yaml")
    frozen = yaml.safe_load(render(job, "jobset", recipe="name: resolved\n")["00-configmap.yaml"])
    assert frozen["data"]["recipe.yaml"] == "name: resolved\n"
    assert frozen["immutable"] is True


def test_a_password_is_never_written_into_a_config_map(tmp_path: Path) -> None:
    address = "https://ann:hunter22@mlflow.example"
    job = job_for("jobset", tmp_path)
    with pytest.raises(ConfigError, match="holds a password") as refused:
        render(job, "jobset", recipe=f"tracking: {{uri: {address}}}\n")
    assert "hunter22" not in str(refused.value)
    with pytest.raises(ConfigError, match="holds a password"):
        render(replace(job, overrides=[f"tracking.uri={address}"]), "jobset")


def test_unknown_kinds_and_workers_are_refused(tmp_path: Path) -> None:
    job = job_for("rayjob", tmp_path)
    with pytest.raises(ConfigError, match="must be one of indexed-job, jobset, trainjob"):
        render(job, "cronjob")
    with pytest.raises(ConfigError, match="ray_workers = 0"):
        render(job, "rayjob", ray_workers=0)


@pytest.mark.parametrize(
    ("content", "words"), [(b"\xff\xfe", "is no text in UTF-8"), (b"#" * 10**6, "1000000 bytes")]
)
def test_recipes_that_no_config_map_can_hold(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        render(job_for("jobset", tmp_path), "jobset")


def test_the_commands_name_the_namespace_and_the_job(tmp_path: Path) -> None:
    job = job_for("jobset", tmp_path)
    assert submit_command("out/a b", "ml") == [
        *("kubectl", "--namespace=ml", "apply", "--filename=out/a b")
    ]
    assert "jobsets.jobset.x-k8s.io,pods" in status_command(job, "jobset")
    assert "--selector=app.kubernetes.io/instance=grounding" in logs_command(job)
    assert cancel_command("out")[1:3] == ["delete", "--filename=out"]
