"""The Dockerfile keeps its promises: pinned, without privileges, checked by the doctor."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.doctor.command import build_parser
from jobs.doctor.plan import Plan

ROOT = Path(__file__).parents[3]
TARGETS = ("cpu", "gpu")
BUILD = ROOT / ".ci" / "image"
# pip puts it beside the interpreter, whose folder need not be on PATH.
SHELLCHECK = shutil.which("shellcheck") or shutil.which(
    "shellcheck", path=Path(sys.executable).parent
)


def instructions() -> list[tuple[str, str]]:
    """Each instruction as its word and what follows, with continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def stages() -> dict[str, list[tuple[str, str]]]:
    """The instructions of each stage, its FROM first."""
    found: dict[str, list[tuple[str, str]]] = {}
    for word, rest in instructions():
        if word == "FROM":
            found[rest.split(" AS ")[1]] = []
        if found:
            found[list(found)[-1]].append((word, rest))
    return found


def test_every_base_is_an_argument_with_a_tag_or_a_stage() -> None:
    arguments = [rest.split("=", 1) for word, rest in instructions() if word == "ARG"]
    bases = {name: default for name, default in arguments if name.endswith("_BASE")}
    assert set(bases) == {"CUDA_BASE", "CPU_BASE"}
    for default in bases.values():
        assert re.fullmatch(r"[\w./-]+:[\w.-]+", default), default
        assert not default.endswith(":latest")
    known = [f"${{{name}}}" for name in bases]
    for name, (first, *_) in stages().items():
        assert first[1].split(" AS ")[0] in known
        known.append(name)


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_holds_no_build_and_ends_with_the_doctor_without_privileges(target: str) -> None:
    stage = stages()[target]
    words = [word for word, _ in stage]
    users = [rest for word, rest in stage if word == "USER"]
    assert users == ["10001"]
    runs = [rest for word, rest in stage if word == "RUN"]
    assert len(runs) == 1
    assert words.index("USER") < words.index("RUN")
    copies = [rest for word, rest in stage if word == "COPY"]
    assert copies == [f"--from={target}-build /opt/prefixworks /opt/prefixworks"]
    assert f"FROM {target}-system AS {target}" == " ".join(stage[0])


@pytest.mark.parametrize("target", TARGETS)
def test_the_doctor_takes_what_the_build_gives_it(target: str) -> None:
    (line,) = [rest for word, rest in stages()[target] if word == "RUN"]
    program, command, *options = shlex.split(line)
    assert (program, command) == ("prefixworks", "doctor")
    given = build_parser().parse_args(options)
    steps = Plan(skip=given.skip).local_steps()
    assert {"libraries", "base", "all-reduce", "checkpoints"} <= set(steps)
    assert "shared memory" not in steps
    assert str(given.constraints) == "/opt/prefixworks/constraints.txt"


@pytest.mark.parametrize("target", TARGETS)
def test_the_environment_is_built_from_the_tested_versions(target: str) -> None:
    runs = [rest for word, rest in stages()[f"{target}-build"] if word == "RUN"]
    assert len(runs) == 1
    assert "--constraint constraints.txt" in runs[0]
    assert "cp constraints.txt /opt/prefixworks/" in runs[0]
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    for needed in ("constraints.txt", "pyproject.toml", "README.md", "LICENSE", "jobs"):
        assert f"!{needed}" in ignored


def test_the_mlflow_image_takes_the_same_versions_and_no_privileges() -> None:
    text = (ROOT / "deploy" / "mlflow.Dockerfile").read_text().replace("\\\n", " ")
    lines = [" ".join(line.split()) for line in text.splitlines()]
    (install,) = [line for line in lines if line.startswith("RUN ")]
    assert (
        "--constraint /opt/prefixworks/constraints.txt ${PIP_ARGS} 'prefixworks[team]'" in install
    )
    assert [line for line in lines if line.startswith("USER ")][-1] == "USER 10001"
    assert lines.index("USER 10001") > lines.index(install)


@pytest.mark.parametrize("word", ["--target=tpu", "--base=", "--no-such", "cpu"])
def test_the_build_refuses_what_it_does_not_know(word: str) -> None:
    done = subprocess.run([BUILD, word], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"error: {word}: not an option, or without its value"
    assert done.stdout == ""


def test_the_build_builds_on_the_arguments_that_the_recipes_have() -> None:
    given = set(re.findall(r'--build-arg "(\w+)=', BUILD.read_text()))
    recipes = [(ROOT / name).read_text() for name in ("Dockerfile", "deploy/mlflow.Dockerfile")]
    assert given == set(re.findall(r"^ARG (\w+)=", "\n".join(recipes), flags=re.MULTILINE))


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing_in_the_build() -> None:
    assert SHELLCHECK is not None
    done = subprocess.run([SHELLCHECK, BUILD], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
