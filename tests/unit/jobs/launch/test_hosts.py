"""Jobs over hosts without a scheduler, as they are written down; real hosts train elsewhere."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from jobs.launch.config import LaunchConfig
from jobs.launch.secrets_file import read_secrets
from pipeline.errors import ConfigError
from tests.support.fake_slurm import write_program
from tests.support.launched_job import launch_config, rendered

HOSTS = "# a comment\nnode-a slots=4\n\nnode-b slots=2\nnode-c slots=4\n"
HOSTILE = "a b; $(touch owned) `touch owned` \" ' \\ \nlast"


def job(folder: Path, hosts: str = HOSTS, **settings: object) -> LaunchConfig:
    (folder / "hostfile").write_text(hosts)
    tree = {"nodes": 2, "processes_per_node": 2, **settings}
    where = {"hostfile": str(folder / "hostfile")}
    return launch_config(folder, backend="hosts", hosts=where, **tree)


def test_the_hosts_with_enough_slots_are_taken_in_their_order(tmp_path: Path) -> None:
    _, made = rendered(job(tmp_path))
    assert made.files["hosts"] == "node-a slots=2\nnode-b slots=2\n"
    _, made = rendered(job(tmp_path, processes_per_node=4))
    assert made.files["hosts"] == "node-a slots=4\nnode-c slots=4\n"
    assert "--master_addr=node-a" in made.files["job.sh"]


def test_hostile_values_reach_ranks_by_a_file_alone(tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    secrets.write_text("TOKEN=$(touch owned)\n")
    environment = {"NOTE": HOSTILE, "NCCL_NOTE": HOSTILE}
    frozen, made = rendered(job(tmp_path, environment=environment, secrets=[str(secrets)]))
    assert "owned" not in made.files["job.sh"]
    told = json.loads((frozen.folder / "rank.json").read_text())
    assert told["environment"]["NCCL_NOTE"] == told["environment"]["NOTE"] == HOSTILE
    assert read_secrets(Path(told["secrets"][0])) == {"TOKEN": "$(touch owned)"}


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder before all others on PATH, with a pdsh that reaches every host."""
    folder = tmp_path / "programs"
    folder.mkdir()
    write_program(
        folder / "pdsh", f'#!/bin/bash\necho "$PDSH_SSH_ARGS_APPEND $*" >{folder}/pdsh.log\n'
    )
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def test_the_shell_of_a_host_is_told_no_variable_of_the_launching_one(
    tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hidden")
    monkeypatch.setenv("NCCL_NOTE", HOSTILE)
    monkeypatch.setenv("PDSH_SSH_ARGS_APPEND", "-F config")
    frozen, _ = rendered(job(tmp_path, environment={"MLFLOW_RUN_NAME": HOSTILE}))
    seen = programs / "environment"
    write_program(tmp_path / "python", f"#!/bin/bash\nenv >{seen}\n")
    assert subprocess.run(["bash", frozen.folder / "job.sh"], check=False).returncode == 0
    assert "MLFLOW_" not in seen.read_text()
    assert "NCCL_" not in seen.read_text()
    asked = (programs / "pdsh.log").read_text()
    assert asked.startswith("-F config -oBatchMode=yes")
    assert f"-S -w node-a,node-b test -r {frozen.folder}/rank.json" in asked


def test_a_host_that_cannot_be_reached_keeps_the_others_from_waiting(
    tmp_path: Path, programs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    frozen, _ = rendered(job(tmp_path))
    write_program(tmp_path / "python", f'#!/bin/bash\necho "$2" >>{programs}/started\n')
    write_program(programs / "pdsh", "#!/bin/bash\nexit 255\n")
    assert subprocess.run(["bash", frozen.folder / "job.sh"], check=False).returncode == 1
    assert "not every host can be reached" in capfd.readouterr().err
    assert (programs / "started").read_text() == "jobs.launch.packages\n"


def test_ranks_that_were_left_alone_are_asked_to_end_first(tmp_path: Path, programs: Path) -> None:
    (tmp_path / "runs" / "run").mkdir(parents=True)
    output = [f"output_dir={tmp_path / 'runs'}"]
    frozen, _ = rendered(job(tmp_path, overrides=output))
    stop = frozen.folder / "stop"
    write_program(
        tmp_path / "python", f"#!/bin/bash\n[ ! -e {stop} ] && echo $2 >>{programs}/started\n"
    )
    with (tmp_path / "runs" / "run" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        script = subprocess.Popen(["bash", frozen.folder / "job.sh"])
        try:
            until = time.monotonic() + 60
            while not stop.exists():
                assert time.monotonic() < until
                time.sleep(0.02)
            assert script.poll() is None
            fcntl.flock(lock, fcntl.LOCK_UN)
            assert script.wait(60) == 0
        finally:
            script.kill()
    started = (programs / "started").read_text().splitlines()
    assert started == ["jobs.launch.packages", "deepspeed.launcher.runner"]


def test_the_script_is_clean_shell(tmp_path: Path) -> None:
    frozen, _ = rendered(job(tmp_path))
    shellcheck = shutil.which("shellcheck")
    assert shellcheck is not None
    checked = subprocess.run(
        [shellcheck, str(frozen.folder / "job.sh")], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"nodes": 4}, "3 different hosts with 2 or more slots"),
        ({"hosts": "node-a\nnode-b slots=2\n"}, "line 1 is 'node-a', and must be NAME slots=N"),
        ({"hosts": "node-a slots=2\nnode-a slots=2\n"}, "has 1 different hosts"),
        ({"hosts": "-oProxyCommand=x slots=2\n"}, "line 1 is"),
        ({"image": "prefixworks"}, "backend = hosts runs what is installed there"),
        ({"environment": {"PYTHONPATH": "/a:$(touch owned)"}}, "a shell on each host reads it"),
        ({"output_root": "a folder"}, "may hold only letters, digits"),
    ],
)
def test_what_hosts_cannot_run_is_refused_by_name(
    tmp_path: Path, settings: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint.replace("(", r"\(")):
        rendered(job(tmp_path, **settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["export A=1\n", "A\n", "1A=2\n", "A[$(touch owned)]=1\n"])
def test_other_lines_in_a_secrets_file_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "secrets").write_text(text)
    with pytest.raises(ConfigError, match="a line that is not KEY=VALUE"):
        read_secrets(tmp_path / "secrets")
