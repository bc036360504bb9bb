"""What a Ray cluster is asked for, what is sent to it, and what is refused before anything is."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from jobs.launch.ray import jobs_api, node
from jobs.launch.ray.config import RayConfig
from jobs.launch.ray.package import package
from pipeline.errors import ConfigError, DataError
from tests.support.launched_job import launch_config, rendered

HOSTILE = 'it\'s "a" $(touch pwned) `touch pwned` ${HOME}\nfolder; exit 1 #'


def asked(folder: Path, **settings: Any) -> dict[str, Any]:
    """The file that a job's backend writes for the cluster."""
    _, made = rendered(launch_config(folder, backend="ray", **settings))
    found: dict[str, Any] = json.loads(made.files["ray.json"])
    return found


@pytest.fixture
def restored() -> Iterator[None]:
    """Folder and variables, which a node changes for itself."""
    folder, variables = Path.cwd(), dict(os.environ)
    yield
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)


def test_the_cluster_s_shell_reads_nothing_that_a_user_wrote(tmp_path: Path) -> None:
    here = tmp_path / HOSTILE
    here.mkdir()
    secrets = HOSTILE.replace("\n", " ")  # the name of a file of secrets is a line
    found = asked(
        here,
        python=HOSTILE,
        overrides=[f"output_dir={HOSTILE}"],
        environment={"ODD": HOSTILE},
        secrets=[secrets],
        ray={"work_folder": f"/{HOSTILE}"},
    )
    request = found["request"]
    # sh, as Ray calls it, sees one program that it does not find.
    ran = subprocess.run(request["entrypoint"], shell=True, cwd=tmp_path, capture_output=True)
    assert ran.returncode == 127
    assert not list(tmp_path.rglob("pwned"))
    assert shlex.split(request["entrypoint"])[1] == HOSTILE
    assert found["node"]["environment"] == {"ODD": HOSTILE}
    assert found["node"]["secrets"] == [f"/{HOSTILE}/{secrets}"]
    # Ray replaces ${NAME} in these.
    assert not any("$" in value for value in request["runtime_env"]["env_vars"].values())


def test_training_is_asked_for_as_ranks_and_the_rest_as_a_process(tmp_path: Path) -> None:
    gpus = {"nodes": 2, "accelerators_per_node": 4, "memory_gb": 8.0, "cpus_per_process": 3}
    training = asked(tmp_path, **gpus)
    assert training["group"] == {
        "nodes": 2,
        "ranks_per_node": 4,
        "gpus_per_rank": 1,
        "cpus_per_rank": 3,
        "memory_bytes_per_rank": 2_000_000_000,
        "resources": {},
        "placement": "nodes",
        "max_restarts": 3,
        "save_s": 300,
        "logs": f"{training['driver']['folder']}/logs",
    }
    assert not any(name.startswith("entrypoint_") for name in training["request"])


def test_evaluation_asks_for_a_node_with_room(tmp_path: Path) -> None:
    recipe = tmp_path / "evaluate.yaml"
    recipe.write_text("{prompt: runs/run, dataset: data}")
    found = asked(
        tmp_path,
        stage="evaluate",
        recipe=str(recipe),
        accelerators_per_node=1,
        ray={"driver_resources": {"fast": 1.0}},
    )
    assert found["group"] is None
    assert found["request"]["entrypoint_num_gpus"] == 1
    assert found["request"]["entrypoint_num_cpus"] == 4
    assert found["request"]["entrypoint_resources"] == {"fast": 1.0}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"image": "img"}, "image = 'img'"),
        ({"volumes": [{"source": "/a", "mount": "/b"}]}, "volumes = ['/b']"),
        ({"accelerators_per_node": 4, "processes_per_node": 2}, "processes_per_node = 2"),
        ({"ray": {"max_upload_mb": 0.01}}, "ray.max_upload_mb = 0.01: the package of the job has"),
        ({"ray": {"excludes": ["jobs/*"]}}, "leaves out jobs/launch/ray/driver.py"),
    ],
)
def test_what_cannot_be_run_is_refused(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        asked(tmp_path, **settings)
    assert said in str(caught.value)
    assert not (tmp_path / "launched").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"address": "10.0.0.1:6379"}, "address = '10.0.0.1:6379'"),
        ({"address": "http://me:word@head:8265"}, "address: holds a password"),
        ({"work_folder": "here"}, "work_folder = 'here'"),
        ({"max_upload_mb": 500.0}, "max_upload_mb = 500.0"),
        ({"resources": {"GPU": 1.0}}, "resources.GPU"),
        ({"driver_resources": {"disk": 0.0}}, "driver_resources.disk = 0.0"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RayConfig(**settings)
    assert str(caught.value).startswith(said)
    assert "word" not in str(caught.value).replace("password", "")


def test_the_package_holds_code_and_settings_and_is_the_same_each_time(tmp_path: Path) -> None:
    frozen, _ = rendered(launch_config(tmp_path, backend="ray"))
    packed = package(frozen.folder, ["model/*"], 100)
    names = set(zipfile.ZipFile(BytesIO(packed)).namelist())
    assert {"config.yaml", "job.yaml", "packages.json", "ray.json", "jobs/cli.py"} <= names
    assert not any(name.startswith("model/") for name in names)
    # Running leaves these behind.
    (frozen.folder / "logs" / "rank-0.log").write_text("text")
    (frozen.folder / "submission.json").write_text("{}")
    cached = frozen.folder / "code" / "jobs" / "__pycache__"
    cached.mkdir()
    (cached / "cli.pyc").write_bytes(b"code")
    assert package(frozen.folder, ["model/*"], 100) == packed


@pytest.mark.usefixtures("restored")
def test_a_node_is_set_up_as_the_job_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / HOSTILE
    work.mkdir()
    (work / "secrets").write_text("# a comment\n\nTOKEN= a=b $HOME \nEMPTY=\n")
    described = {
        "work_folder": str(work),
        "environment": {"ODD": HOSTILE, "PYTHONPATH": "/mine"},
        "secrets": [str(work / "secrets")],
    }
    (tmp_path / "ray.json").write_text(json.dumps({"node": described}))
    monkeypatch.setattr(node, "ROOT", tmp_path)
    for _ in range(2):  # the job's driver comes after a worker of Ray that did it before
        node.enter()
    assert Path.cwd() == work
    assert os.environ["ODD"] == HOSTILE
    assert os.environ["TOKEN"] == " a=b $HOME "
    assert os.environ["EMPTY"] == ""
    assert os.environ["PYTHONPATH"] == f"{tmp_path}:/mine"
    (work / "secrets").write_text("BASH_FUNC[$(touch pwned)]=1\n")
    with pytest.raises(ConfigError, match="has a line that is not KEY=VALUE"):
        node.enter()
    (work / "secrets").unlink()
    with pytest.raises(ConfigError, match=r"(?s)cannot read .*secrets: No such file"):
        node.enter()
    described |= {"secrets": [], "work_folder": "/no/such"}
    (tmp_path / "ray.json").write_text(json.dumps({"node": described}))
    with pytest.raises(ConfigError, match=r"ray\.work_folder = '/no/such': node .* has no such"):
        node.enter()


def test_the_address_is_the_job_s_then_the_environment_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    assert jobs_api.address(None) == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_ADDRESS", "http://second:8265/")
    assert jobs_api.address(None) == "http://second:8265"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "https://first")
    assert jobs_api.address(None) == "https://first"
    assert jobs_api.address("http://mine:1") == "http://mine:1"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "head:6379")
    with pytest.raises(ConfigError, match="RAY_API_SERVER_ADDRESS = 'head:6379'"):
        jobs_api.address(None)


def test_a_dashboard_that_nobody_runs_is_one_line() -> None:
    with (
        pytest.raises(DataError, match=r"no Ray dashboard at http://127\.0\.0\.1:1"),
        jobs_api.client("http://127.0.0.1:1"),
    ):
        pass
