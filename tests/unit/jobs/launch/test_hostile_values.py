"""Values that shells, YAML and Kubernetes could take for their own, launched for real.

A recorder stands where Python is started for the stage: it writes down its words, variables and
folder. Slurm's script and hosts have tests like these beside their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import chdir
from pathlib import Path
from typing import Any

import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.config import RunConfig, load
from pipeline.tracking.secrets import redact
from tests.support.fake_slurm import write_program
from tests.support.kubelet import run_container
from tests.support.launched_job import launch_config, rendered

HOSTILE = "-a b'c\"d`touch evil`$(touch evil)$(VALUE)$$${HOME};touch evil\n#&|<>*?[x]~!é\t{y}%\\"
TEXT = st.text(
    st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1, max_size=30
).filter(lambda text: redact(text) == text)
# Names of folders; a colon ends a folder in PYTHONPATH and is refused.
FOLDER = st.text(
    st.characters(exclude_characters="\0/:", exclude_categories=("Cs",)), min_size=1, max_size=20
).filter(lambda text: text not in (".", ".."))
WORST_FOLDER = HOSTILE.replace("/", "")

# The check of the packages before the stage is none of these tests.
_RECORDER = """#!/bin/bash
case "$*" in *jobs.launch.packages*) exit 0 ;; esac
printf '%s\\0' "$@" >"$RECORDS/words"
env -0 >"$RECORDS/variables"
printf '%s' "$PWD" >"$RECORDS/folder"
"""


def recorded(records: Path, name: str) -> list[str]:
    """What the recorder wrote down; every entry ends with NUL."""
    return (records / name).read_bytes().decode().split("\0")[:-1]


def variables(records: Path) -> dict[str, str]:
    pairs = (entry.partition("=") for entry in recorded(records, "variables"))
    return {name: value for name, _, value in pairs}


@settings(max_examples=3, deadline=None)
@given(value=TEXT, folder=FOLDER, override=TEXT)
@example(value=HOSTILE, folder=WORST_FOLDER, override=HOSTILE)
def test_they_arrive_on_this_machine(value: str, folder: str, override: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        records = Path(scratch)
        place = records / folder
        place.mkdir()
        write_program(place / "python", _RECORDER)
        line, _, _ = HOSTILE.partition("\n")
        # A line holds a path of secrets, and one of theirs.
        secrets = place / f"{folder} secrets".replace("\n", "")
        secrets.write_text(f"TOKEN={line}\n")
        launch = launch_config(
            place,
            backend="local",
            output_root=folder,
            environment={"VALUE": value, "RECORDS": scratch},
            secrets=[secrets.name],
            overrides=[f"data.train.0={override}"],
        )
        with chdir(place):
            frozen, made = rendered(launch)
            done = subprocess.run(made.command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        config = f"--config={frozen.folder / 'config.yaml'}"
        assert recorded(records, "words") == ["-m", "jobs.train", config, "--resume"]
        seen = variables(records)
        assert seen["VALUE"] == value
        assert seen["TOKEN"] == line
        assert seen["PYTHONPATH"].startswith(f"{frozen.folder}/code")
        assert (records / "folder").read_text() == str(place)
        assert load(RunConfig, [frozen.folder / "config.yaml"]).data.train == [override]
        assert not list(records.rglob("evil"))


@settings(max_examples=3, deadline=None)
@given(value=TEXT, folder=FOLDER, override=TEXT)
@example(value=HOSTILE, folder=WORST_FOLDER, override=HOSTILE)
def test_they_arrive_in_a_pod(value: str, folder: str, override: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        records = Path(scratch)
        launch = launch_config(
            records,
            backend="kubernetes",
            python=None,
            output_root=str(records / folder),
            image="prefixworks",
            environment={"VALUE": value, "AFTER": "$(VALUE)"},
            volumes=[{"source": "pvc:runs", "mount": "/runs"}],
            overrides=[f"data.train.0={override}"],
        )
        frozen, made = rendered(launch)
        assert made.command[-1] == f"--filename={frozen.folder / 'manifests.yaml'}"
        objects = pod_objects((frozen.folder / "manifests.yaml").read_text())
        (container,) = objects["Job"]["spec"]["template"]["spec"]["containers"]
        # The interpreter of the image, as far as the ranks: what they are told is written down.
        program = records / "bin" / "python"
        program.parent.mkdir()
        write_program(program, _interpreter(records))
        done = run_container(
            container,
            objects["ConfigMap"]["data"],
            records / "frozen",
            PATH=f"{program.parent}:{os.environ['PATH']}",
            MASTER_ADDR="localhost",
            JOB_COMPLETION_INDEX="0",
        )
        assert done.returncode == 0, done.stderr
        config = records / "frozen" / "recipe.yaml"
        assert recorded(records, "words") == ["-m", "jobs.train", f"--config={config}", "--resume"]
        seen = variables(records)
        assert (seen["VALUE"], seen["AFTER"]) == (value, "$(VALUE)")
        assert load(RunConfig, [config]).data.train == [override]
        assert not list(records.rglob("evil"))


def pod_objects(text: str) -> dict[str, Any]:
    """The objects of a manifest file, by kind."""
    return {each["kind"]: each for each in yaml.safe_load_all(text)}


def _interpreter(records: Path) -> str:
    """A Python for the entry, whose ranks start the recorder in its place."""
    write_program(records / "recorder", _RECORDER)
    start = "import runpy, sys; sys.executable = {recorder!r}; sys.argv[:3] = [''];"
    start += " runpy.run_module('jobs.launch.kubernetes.entry', run_name='__main__')"
    program = start.format(recorder=str(records / "recorder"))
    root = Path(__file__).parents[4]
    return (
        f"#!/bin/bash\nexport PYTHONPATH='{root}' RECORDS='{records}'\n"
        f'exec {sys.executable} -c "{program}" "$@"\n'
    )
