"""Slurm's scripts, run where its commands are programs that write down what they are told."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.launch.job_folder import recorded_end
from pipeline.config import RunConfig, load
from pipeline.tracking.secrets import redact
from tests.support.fake_slurm import FakeSlurm, write_program
from tests.support.launched_job import SHELLCHECK, launch_config, rendered

LAUNCHERS = ("srun", "torchrun", "deepspeed")

# All that a shell, YAML or a list of options could take for its own.
HOSTILE = "a b'c\"d`touch evil`$(touch evil)${HOME};touch evil\n#&|<>*?[x]~!é\t{y}"
TEXT = st.text(
    st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1, max_size=30
).filter(lambda text: redact(text) == text)
# Names of folders, less what launching refuses.
FOLDER = st.text(
    st.characters(exclude_characters="\0/%\\:,", exclude_categories=("Cs",)),
    min_size=1,
    max_size=20,
).filter(lambda text: text not in (".", ".."))


@pytest.fixture
def slurm(tmp_path: Path) -> FakeSlurm:
    return FakeSlurm(tmp_path / "fake")


def script_of(folder: Path, **job: Any) -> Path:
    frozen, _ = rendered(launch_config(folder, **job))
    return frozen.folder / "job.sh"


@pytest.mark.parametrize("launcher", ["srun", "torchrun"])
def test_the_ranks_are_started_on_all_nodes(
    launcher: str, tmp_path: Path, slurm: FakeSlurm
) -> None:
    job = {"nodes": 2, "processes_per_node": 2, "cpus_per_process": 3}
    script = script_of(tmp_path, slurm={"launcher": launcher}, **job)
    done = slurm.run(script)
    assert done.returncode == 0, done.stderr
    words = slurm.words("srun")
    tasks, cpus = (2, 3) if launcher == "srun" else (1, 6)
    assert f"--ntasks={2 * tasks}" in words
    assert f"--ntasks-per-node={tasks}" in words
    assert f"--cpus-per-task={cpus}" in words
    assert "--open-mode=append" in words
    assert words[-2:] == [f"--config={script.parent / 'config.yaml'}", "--resume"]
    seen = slurm.srun_environment()
    assert seen["MASTER_ADDR"] == "node-a"
    assert seen["MASTER_PORT"] == "19711"
    assert seen["PYTHONPATH"].split(":")[0] == str(script.parent / "code")


def test_deepspeeds_launcher_knows_the_nodes(tmp_path: Path, slurm: FakeSlurm) -> None:
    launch = {"nodes": 2, "processes_per_node": 2, "slurm": {"launcher": "deepspeed"}}
    write_program(
        tmp_path / "python",
        '#!/bin/bash\nprintf "%s\\0" "$@" >"$FAKE/python.words"\npwd -P >"$FAKE/folder"\n',
    )
    script = script_of(tmp_path, **launch)
    done = slurm.run(script)
    assert done.returncode == 0, done.stderr
    hosts = (script.parent / "hosts.4711").read_text()
    assert hosts == "node-a slots=2\nnode-b slots=2\n"
    words = slurm.words("python")
    assert words[:2] == ["-m", "deepspeed.launcher.runner"]
    assert {"--launcher=slurm", "--num_nodes=2", "--master_addr=node-a"} <= set(words)
    assert words[-3:] == [
        str(script.parent / "code/jobs/train.py"),
        f"--config={script.parent / 'config.yaml'}",
        "--resume",
    ]
    assert (slurm.folder / "folder").read_text().strip() == str(script.parent / "code")
    [inner] = [word for word in words if word.startswith("--launcher_args=")]
    assert f"--chdir={Path.cwd()}" in shlex.split(inner.partition("=")[2])


@pytest.mark.parametrize(
    ("status", "restarts", "requeued", "recorded"),
    [
        (0, "", [], "finished"),
        (1, "", [], "failed"),
        (137, "", [], "failed"),
        (138, "", [], "failed"),
        (75, "", ["4711"], "lost"),
        (75, "1", ["4711"], "lost"),
        (75, "2", [], "interrupted"),
    ],
)
def test_only_what_saved_is_put_back_and_not_for_ever(
    status: int,
    restarts: str,
    requeued: list[str],
    recorded: str,
    tmp_path: Path,
    slurm: FakeSlurm,
) -> None:
    script = script_of(tmp_path, max_restarts=2)
    more = {"SLURM_RESTART_COUNT": restarts} if restarts else {}
    done = slurm.run(script, FAKE_STATUS=str(status), **more)
    assert done.returncode == status
    assert slurm.requeued() == requeued
    assert recorded_end(script.parent, "").word == recorded


def test_a_cancelled_job_is_not_put_back(tmp_path: Path, slurm: FakeSlurm) -> None:
    script = script_of(tmp_path)
    (script.parent / "cancelled").touch()
    assert slurm.run(script, FAKE_STATUS="75").returncode == 75
    assert slurm.requeued() == []
    assert recorded_end(script.parent, "").word == "cancelled"


@pytest.mark.parametrize("number", ["USR1", "TERM"])
@pytest.mark.parametrize(
    ("body", "status", "requeued"),
    [
        # saves and asks to be started again; finishes in spite of the signal; dies of it
        ("trap 'exit 75' USR1\nkill -{number} $PPID\nwhile :; do sleep 0.01; done", 75, ["4711"]),
        ("trap '' USR1\nkill -{number} $PPID\nsleep 0.1\nexit 0", 0, []),
        ("kill -{number} $PPID\nwhile :; do sleep 0.01; done", 75, ["4711"]),
        ("trap '' USR1\nkill -{number} $PPID\nsleep 0.1\nexit 1", 1, []),
    ],
)
def test_a_signal_reaches_the_ranks_and_their_status_decides(
    number: str, body: str, status: int, requeued: list[str], tmp_path: Path, slurm: FakeSlurm
) -> None:
    (slurm.folder / "srun.body").write_text(body.format(number=number))
    assert slurm.run(script_of(tmp_path)).returncode == status
    assert slurm.requeued() == requeued


def test_a_rank_killed_after_its_run_finished_is_not_run_again(
    tmp_path: Path, slurm: FakeSlurm
) -> None:
    runs = tmp_path / "my runs"
    (slurm.folder / "srun.body").write_text(
        f"mkdir -p '{runs}/run'\ntouch '{runs}/run/summary.json'\n"
        "kill -USR1 $PPID\nwhile :; do sleep 0.01; done"
    )
    script = script_of(tmp_path, overrides=[f"output_dir={runs}"])
    assert slurm.run(script).returncode == 0
    assert slurm.requeued() == []
    assert recorded_end(script.parent, "").word == "finished"


def test_deepspeeds_launcher_itself_calls_srun(tmp_path: Path, slurm: FakeSlurm) -> None:
    script = script_of(
        tmp_path,
        python=sys.executable,
        nodes=2,
        processes_per_node=2,
        slurm={"launcher": "deepspeed"},
    )
    done = slurm.run(script, FAKE_STATUS="75")
    assert done.returncode == 75, done.stderr
    assert slurm.requeued() == ["4711"]
    words = slurm.words("srun")
    assert words[:2] == ["-n", "4"]
    assert {f"--chdir={Path.cwd()}", "--ntasks-per-node=2", "--nodes"} <= set(words)
    assert f"--output={script.parent}/logs/rank-%t.log" in words
    code = script.parent / "code"
    config = f"--config={script.parent / 'config.yaml'}"
    assert words[-5:] == [sys.executable, "-u", f"{code}/jobs/train.py", config, "--resume"]
    # The frozen code comes first, whatever folder the job was launched from.
    [exports] = [word for word in words if word.startswith("--export=")]
    [path] = [each for each in exports.split(",") if each.startswith("PYTHONPATH=")]
    assert path.partition("=")[2].split(":")[0] == str(code)


def test_deepspeeds_ranks_are_told_by_slurm_until_they_are_there(
    tmp_path: Path, slurm: FakeSlurm
) -> None:
    stage = (
        'case "$*" in *jobs.launch.packages*) exit 0 ;; esac\n'
        # The first call comes too early for the ranks.
        'until [ -e "$FAKE/early" ]; do kill -USR1 $PPID; sleep 0.2; done\n'
        "trap 'exit 75' USR1\n"
        'echo $$ >"$FAKE/.rank" && mv "$FAKE/.rank" "$FAKE/rank"\n'
        "while :; do sleep 0.01; done"
    )
    write_program(tmp_path / "python", f"#!/bin/bash\n{stage}\n")
    write_program(
        slurm.programs / "scancel",
        '#!/bin/bash\ntest "$*" = "--signal=USR1 4711" || exit 1\ntouch "$FAKE/early"\n'
        'if [ -e "$FAKE/rank" ]; then kill -USR1 "$(cat "$FAKE/rank")"; fi\n',
    )
    script = script_of(tmp_path, slurm={"launcher": "deepspeed"})
    assert slurm.run(script).returncode == 75
    assert slurm.requeued() == ["4711"]


def test_secrets_are_read_and_never_run(tmp_path: Path, slurm: FakeSlurm) -> None:
    secrets = tmp_path / "a file's secrets"
    secrets.write_text("# S3\n\nKEY=a=$(touch evil) `touch evil` 'q\nLAST=x")
    script = script_of(tmp_path, secrets=[str(secrets)])
    assert slurm.run(script).returncode == 0
    seen = slurm.srun_environment()
    assert (seen["KEY"], seen["LAST"]) == ("a=$(touch evil) `touch evil` 'q", "x")
    assert "touch evil" not in script.read_text()
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize("line", ["no equals sign", "a[$(touch evil)]=1", "=value"])
def test_a_bad_line_of_secrets_ends_the_job(line: str, tmp_path: Path, slurm: FakeSlurm) -> None:
    (tmp_path / "secrets").write_text(line)
    done = slurm.run(script_of(tmp_path, secrets=[str(tmp_path / "secrets")]))
    assert done.returncode == 1
    assert "a line that is not KEY=VALUE" in done.stderr
    assert line not in done.stderr
    assert not list(tmp_path.rglob("evil"))
    assert not (slurm.folder / "srun.words").exists()


def test_a_missing_secrets_file_ends_the_job(tmp_path: Path, slurm: FakeSlurm) -> None:
    done = slurm.run(script_of(tmp_path, secrets=[str(tmp_path / "none")]))
    assert done.returncode == 1
    assert "none cannot be read" in done.stderr


def test_other_packages_end_the_job_before_any_rank(tmp_path: Path, slurm: FakeSlurm) -> None:
    write_program(tmp_path / "python", "#!/bin/bash\nexit 1\n")
    assert slurm.run(script_of(tmp_path)).returncode == 1
    assert not (slurm.folder / "srun.words").exists()


def test_a_sites_own_lines_run_before_the_ranks(tmp_path: Path, slurm: FakeSlurm) -> None:
    setup = ["load() { export LOADED=$1$NOT_SET; }", "load cuda"]
    assert slurm.run(script_of(tmp_path, slurm={"setup": setup})).returncode == 0
    assert slurm.srun_environment()["LOADED"] == "cuda"


@pytest.mark.parametrize("container", ["pyxis", "apptainer"])
def test_an_image_sees_the_folders_of_the_job(
    container: str, tmp_path: Path, slurm: FakeSlurm
) -> None:
    script = script_of(
        tmp_path,
        image="an image.sif",
        accelerators_per_node=1,
        python="python3",
        slurm={"container": container},
        volumes=[{"source": "/data sets", "mount": "/data", "read_only": True}],
    )
    assert slurm.run(script).returncode == 0
    words = slurm.words("srun")
    mounts = f"{Path.cwd()}:{Path.cwd()},{script.parent}:{script.parent},/data sets:/data:ro"
    at = words.index("python3")
    assert words[at : at + 3] == ["python3", "-m", "jobs.train"]
    if container == "pyxis":
        assert "--container-image=an image.sif" in words
        assert f"--container-mounts={mounts}" in words
    else:
        inner = ["apptainer", "exec", "--nv", f"--bind={mounts}", f"--pwd={Path.cwd()}"]
        assert words[at - 6 : at] == [*inner, "an image.sif"]
    # The image brings its own code and packages.
    assert not (script.parent / "code").exists()
    assert "PYTHONPATH" not in script.read_text()


@settings(max_examples=12, deadline=None)
@given(value=TEXT, folder=FOLDER, override=TEXT)
def test_hostile_values_arrive_unchanged(value: str, folder: str, override: str) -> None:
    arrives(value, folder, override)


def test_the_worst_value_arrives_unchanged() -> None:
    arrives(HOSTILE, re.sub(r"[:,%\\/]", "", HOSTILE), HOSTILE)


def arrives(value: str, folder: str, override: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        slurm = FakeSlurm(place / "fake")
        launch = launch_config(
            place,
            output_root=str(place / folder),
            environment={"VALUE": value},
            overrides=[f"data.train.0={override}"],
            # In an image, because what is copied for a job outside of one takes long.
            image=value,
            slurm={
                "container": "pyxis",
                "master_addr": value,
                "sbatch_options": [f"--comment={value}"],
            },
        )
        frozen, made = rendered(launch)
        assert load(RunConfig, [frozen.folder / "config.yaml"]).data.train == [override]
        done = slurm.run(frozen.folder / "job.sh")
        assert done.returncode == 0, done.stderr
        seen = slurm.srun_environment()
        assert (seen["VALUE"], seen["MASTER_ADDR"]) == (value, value)
        words = slurm.words("srun")
        assert f"--container-image={value}" in words
        assert f"--output={frozen.folder}/logs/rank-%t.log" in words
        assert words[-2] == f"--config={frozen.folder / 'config.yaml'}"
        # What is shown to be copied is what would be run.
        shown = subprocess.run(
            ["bash", "-c", shlex.join(made.command)], env=slurm.environment(), check=True
        )
        assert shown.returncode == 0
        assert slurm.words("sbatch") == made.command[1:]
        assert f"--comment={value}" in made.command
        assert not list(place.rglob("evil"))


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("launcher", [*LAUNCHERS, "local"])
def test_shellcheck_finds_nothing(launcher: str, tmp_path: Path) -> None:
    place = {"backend": "local"} if launcher == "local" else {"slurm": {"launcher": launcher}}
    script = script_of(
        tmp_path,
        environment={"VALUE": HOSTILE},
        secrets=[str(tmp_path / "a b")],
        output_root=str(tmp_path / ("folder" if launcher == "deepspeed" else "it's a $folder")),
        **place,
    )
    done = subprocess.run(
        # A `$` inside of a value is meant to stay what it is.
        [str(SHELLCHECK), "--exclude=SC2016", str(script)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
