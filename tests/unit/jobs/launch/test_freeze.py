"""Frozen jobs: what is written down, and that nothing outside of it decides what runs."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.launch.freeze import freeze
from jobs.launch.packages import differences, installed, main
from pipeline.config import RunConfig, load
from pipeline.errors import DataError
from tests.support.launched_job import launch_config, recipe, rendered

ROOT = Path(__file__).parents[4]


def test_the_settings_are_resolved_and_hold_the_ranks(tmp_path: Path) -> None:
    launch = launch_config(
        tmp_path, nodes=2, accelerators_per_node=2, overrides=["optimizer.lr=0.5", "name=a=b c"]
    )
    frozen, _ = rendered(launch)
    # What becomes of the recipe does not matter to the job any more.
    recipe(tmp_path, seed=9)
    config = load(RunConfig, [frozen.folder / "config.yaml"])
    assert (config.optimizer.lr, config.name, config.seed) == (0.5, "a=b c", 0)
    assert (config.engine.processes, config.engine.threads_per_process) == (4, 4)


def test_the_recipe_says_how_many_ranks_where_the_job_does_not(tmp_path: Path) -> None:
    launch = launch_config(tmp_path, nodes=2, overrides=["engine.processes=4"])
    assert freeze(launch).launch.ranks_per_node == 2


def test_the_name_follows_from_all_that_decides(tmp_path: Path) -> None:
    launch = launch_config(tmp_path)
    folders = {
        freeze(each).folder.name
        for each in (
            launch,
            dataclasses.replace(launch, overrides=["seed=1"]),
            dataclasses.replace(launch, time_limit_s=1000),
            launch_config(tmp_path),
        )
    }
    assert len(folders) == 3
    assert all(name.startswith("job-") and len(name) == len("job-") + 12 for name in folders)


def test_the_frozen_code_is_what_runs(tmp_path: Path) -> None:
    frozen, _ = rendered(launch_config(tmp_path))
    code = frozen.folder / "code"
    mark = code / "jobs" / "synthesize.py"
    mark.write_text("import jobs\nprint(jobs.__file__)\n")
    done = subprocess.run(
        [sys.executable, "-m", "jobs.synthesize"],
        cwd=ROOT,  # where the checkout's own code lies
        env={"PYTHONSAFEPATH": "1", "PYTHONPATH": str(code)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(code / "jobs" / "__init__.py")
    assert json.loads((frozen.folder / "code.json").read_text())["files_sha256"]


def test_a_disk_that_refuses_leaves_nothing(tmp_path: Path) -> None:
    launch = launch_config(tmp_path, output_root=str(tmp_path / "file"))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot be written"):
        rendered(launch)
    assert (tmp_path / "file").read_text() == "in the way"


def test_what_a_library_brings_along_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "brought_along-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: brought-along\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "brought-along" not in installed()
    assert "prefixworks" in installed()


def test_other_packages_end_a_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = installed()
    lock = tmp_path / "packages.json"
    lock.write_text(json.dumps(here))
    assert main(str(lock)) == 0
    lock.write_text(json.dumps({**here, "numpy": "0.1", "no-such": "2"}))
    assert main(str(lock)) == 1
    said = capsys.readouterr().err
    assert f"numpy {here['numpy']} instead of 0.1, no-such is missing instead of 2" in said
    lock.write_text("{")
    assert main(str(lock)) == 1
    assert differences({"a": "1"}, {"a": "1", "b": "2"}) == []
