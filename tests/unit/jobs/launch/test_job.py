"""The description of a job: what is refused, and in which words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from jobs.launch.backend import backend
from jobs.launch.config import LaunchConfig
from jobs.launch.freeze import freeze
from jobs.launch.job import JobConfig, Volume
from pipeline.config_reader import load
from pipeline.errors import ConfigError
from tests.support.launched_job import launch_config

ROOT = Path(__file__).parents[4]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "Upper"}, "name = 'Upper'"),
        ({"name": "a" * 53}, "at most 52"),
        ({"name": "-a"}, "name = '-a'"),
        ({"name": "a\n"}, "name = 'a\\n'"),
        ({"name": "$(touch x)"}, "name = '$(touch x)'"),
        ({"nodes": 0}, "nodes = 0: must be 1 or more"),
        ({"processes_per_node": 0}, "processes_per_node = 0"),
        ({"memory_gb": float("nan")}, "memory_gb = nan"),
        ({"memory_gb": 0.0}, "memory_gb = 0.0"),
        ({"time_limit_s": 300}, "signal_before_end_s = 300: must be below time_limit_s = 300"),
        ({"stage": "prepare", "nodes": 2}, "stage = prepare"),
        ({"overrides": ["optimizer.lr"]}, "overrides[0] = 'optimizer.lr'"),
        ({"overrides": ["--optimizer.lr=1"]}, "must be SETTING=VALUE"),
        ({"environment": {"A B": "1"}}, "environment names 'A B'"),
        ({"environment": {"URI": "http://user:hidden@host"}}, "environment.URI: holds a password"),
        ({"secrets": [""]}, "secrets[0] = ''"),
        ({"volumes": [{"source": "/a", "mount": "b"}]}, "volumes[0].mount = 'b'"),
        ({"backend": "slrum"}, "did you mean slurm?"),
        ({"backend": "cloud"}, "backend = 'cloud': must be one of local, hosts, slurm"),
        ({"slurm": {"sbatch_options": ["-p x"]}}, "slurm.sbatch_options[0] = '-p x'"),
        ({"image": "a.sif"}, "image = 'a.sif': needs slurm.container"),
        ({"slurm": {"container": "pyxis"}}, "needs slurm.container = pyxis or apptainer"),
        (
            {"volumes": [{"source": "/a", "mount": "/b"}]},
            "volumes[0].mount = '/b': without an image",
        ),
        ({"overrides": ["optimizer.rate=1"]}, "optimizer.rate = '1': no such setting"),
        ({"overrides": ["tracking.uri=http://user:hidden@host"]}, "hold a password"),
        ({"nodes": 3, "overrides": ["engine.processes=4"]}, "evenly to 3 nodes"),
        ({"output_root": "a%b"}, "must not hold '%'"),
        ({"output_root": "a b", "slurm": {"launcher": "deepspeed"}}, "may hold only letters"),
        ({"output_root": "a:b"}, "must not hold ':'"),
        ({"backend": "local", "nodes": 2}, "nodes = 2: backend = local"),
        ({"backend": "local", "image": "a.sif"}, "image = 'a.sif': backend = local"),
    ],
)
def test_what_cannot_work_is_refused_by_its_path(
    settings: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        rendered(tmp_path, settings)
    assert words in str(caught.value)
    assert not (tmp_path / "launched").exists()


def rendered(folder: Path, settings: dict[str, Any]) -> None:
    launch = launch_config(folder, **settings)
    backend(launch.backend).render(freeze(launch))


def test_ranks_follow_accelerators_unless_said() -> None:
    job = JobConfig(name="a", recipe="r.yaml", nodes=2, accelerators_per_node=4)
    assert (job.ranks_per_node, job.ranks) == (4, 8)
    job = JobConfig(name="a", recipe="r.yaml", accelerators_per_node=4, processes_per_node=2)
    assert job.ranks == 2
    job = JobConfig(name="a", recipe="r.yaml", stage="evaluate", accelerators_per_node=4)
    assert job.ranks == 1


def test_a_volume_may_be_a_claim() -> None:
    assert Volume(source="pvc:data", mount="/data", read_only=True).source == "pvc:data"


def test_the_jobs_of_the_documentation_are_valid(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "how-to" / "slurm.md").read_text()
    whole, image = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "job.yaml").write_text(whole)
    job = load(LaunchConfig, [tmp_path / "job.yaml"])
    assert (ROOT / job.recipe).is_file()
    assert (job.backend, job.ranks) == ("slurm", 16)
    (tmp_path / "image.yaml").write_text(image)
    job = load(LaunchConfig, [tmp_path / "job.yaml", tmp_path / "image.yaml"])
    assert job.slurm.container == "apptainer"
