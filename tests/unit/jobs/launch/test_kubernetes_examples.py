"""The manifests in deploy/kubernetes: valid, complete, and as the project renders such a job."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.launch.job import JobConfig
from jobs.launch.kubernetes import render
from tests.support.example_jobs import CPU_JOB, GPU_JOB, ROOT
from tests.support.kubernetes_schemas import validate

DEPLOY = ROOT / "deploy" / "kubernetes"
KUSTOMIZATIONS = sorted(DEPLOY.rglob("kustomization.yaml"))
OVERLAYS = DEPLOY / "train" / "overlays"


def documents(text: str) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(text) if each]


def referenced(kustomization: Path) -> set[Path]:
    """The files and folders that a kustomization names."""
    content = yaml.safe_load(kustomization.read_text())
    names = [*content["resources"], *(each["path"] for each in content.get("patches", []))]
    return {(kustomization.parent / name).resolve() for name in names}


def resources() -> list[Path]:
    """All files that hold objects, as against patches."""
    return sorted(
        path
        for kustomization in KUSTOMIZATIONS
        for name in yaml.safe_load(kustomization.read_text())["resources"]
        if (path := kustomization.parent / name).is_file()
    )


def test_every_file_is_named_and_every_name_is_a_file() -> None:
    assert len(KUSTOMIZATIONS) == 4
    named = {path for each in KUSTOMIZATIONS for path in referenced(each)}
    for path in named:
        assert path.is_file() or (path / "kustomization.yaml").is_file(), path
    files = {path for path in DEPLOY.rglob("*.yaml") if path not in KUSTOMIZATIONS}
    assert files == {path for path in named if path.is_file()}


@pytest.mark.parametrize("path", resources(), ids=lambda path: path.name)
def test_every_object_is_valid(path: Path) -> None:
    found = documents(path.read_text())
    assert found
    for manifest in found:
        validate(manifest)


def test_the_base_is_what_the_project_renders() -> None:
    for name, text in render(CPU_JOB, "indexed-job").items():
        assert (DEPLOY / "train" / "base" / name).read_text() == text, f"render {name} again"


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl for its kustomize")
@pytest.mark.parametrize(("overlay", "job"), [("cpu", CPU_JOB), ("gpu", GPU_JOB)])
def test_an_overlay_is_what_the_project_renders_for_such_nodes(
    overlay: str, job: JobConfig
) -> None:
    built = {each["kind"]: each for each in built_by_kustomize(OVERLAYS / overlay)}
    rendered = {each["kind"]: each for each in map(yaml.safe_load, render(job).values())}
    assert built == rendered


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl for its kustomize")
def test_the_services_fit_together() -> None:
    built = built_by_kustomize(DEPLOY / "services")
    for manifest in built:
        validate(manifest)
    objects = {(each["kind"], each["metadata"]["name"]): each for each in built}
    server = objects["Deployment", "mlflow"]["spec"]["template"]
    service = objects["Service", "mlflow"]["spec"]
    assert service["selector"].items() <= server["metadata"]["labels"].items()
    # What training is told is a name under which the server answers.
    (container,) = server["spec"]["containers"]
    environment = {each["name"]: each.get("value") for each in container["env"]}
    address = CPU_JOB.environment["MLFLOW_TRACKING_URI"].removeprefix("http://")
    assert address in environment["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert address == f"mlflow:{service['ports'][0]['port']}"
    claims = {name for kind, name in objects if kind == "PersistentVolumeClaim"}
    assert claims == {"data", "runs", "mlflow-artifacts"}
    assert set(re.findall(r"claimName: (\S+)", yaml.safe_dump(built))) <= claims
    assert {each.source.removeprefix("pvc:") for each in CPU_JOB.volumes} <= claims


def test_ray_in_the_cluster_is_the_ray_that_is_tested() -> None:
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    (cluster,) = documents((DEPLOY / "services" / "ray-cluster.yaml").read_text())
    assert cluster["spec"]["rayVersion"] == pinned[1]


def test_no_manifest_holds_a_secret() -> None:
    for path in DEPLOY.rglob("*.yaml"):
        assert not re.search(r"kind: Secret\b|://[^/\s:]+:(?!PASSWORD)[^/\s]+@", path.read_text())


def built_by_kustomize(folder: Path) -> list[dict[str, Any]]:
    done = subprocess.run(
        ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=True
    )
    return documents(done.stdout)
