"""Jobs over hosts without a scheduler, as they are written down; real hosts train elsewhere."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from jobs.launch.config import LaunchConfig
from jobs.launch.secrets_file import read_secrets
from pipeline.errors import ConfigError
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
