"""The command line as a user meets it: overview, dispatch, one-line errors, exit statuses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import pytest

from jobs.cli import COMMANDS, main, run_stage
from pipeline.errors import (
    EXIT_INTERRUPTED,
    CheckpointError,
    ConfigError,
    DataError,
    RegistryError,
    TrainingError,
)


def test_overview_names_every_command_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert command.summary in printed
        assert f"prefixworks {name}" in printed
    assert max(map(len, printed.splitlines())) <= 100


def test_nothing_said_shows_the_overview_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "commands:" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("prefixworks ")


@pytest.mark.parametrize(
    ("word", "hint"), [("trian", "did you mean train?"), ("zzz", "commands: demo, ")]
)
def test_an_unknown_command_gets_the_nearest(
    word: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: no command '{word}'")
    assert hint in printed


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigError("optimizer.lr = 'x':\nmust be a number"), 2),
        (DataError("shard-000001.tar is corrupt"), 1),
        (CheckpointError("no model.safetensors"), 1),
        (RegistryError("made for another base"), 1),
        (TrainingError("loss is not finite"), 1),
        (TrainingError("saved at step 40", exit_code=EXIT_INTERRUPTED), 75),
        (KeyboardInterrupt(), 130),
    ],
)
def test_known_errors_are_one_line_and_a_status(
    error: BaseException, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def stage(argv: Sequence[str]) -> int:
        raise error

    assert run_stage(stage, []) == status
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1


def test_a_defect_keeps_its_traceback() -> None:
    def stage(argv: Sequence[str]) -> int:
        raise KeyError("a defect")

    with pytest.raises(KeyError, match="a defect"):
        run_stage(stage, [])


def test_a_stage_gets_its_arguments_and_gives_its_status() -> None:
    seen: list[Sequence[str]] = []

    def stage(argv: Sequence[str]) -> int:
        seen.append(argv)
        return 3

    assert run_stage(stage, ["--a=b"]) == 3
    assert seen == [["--a=b"]]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    assert f"prefixworks {name}" in capsys.readouterr().out


def test_a_wrong_setting_of_a_real_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["synthesize", "--output=x", "--domain=downstram"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: domain = 'downstram': must be one of upstream, downstream")
    assert printed.count("\n") == 1


def test_the_overview_imports_no_stage() -> None:
    code = (
        "import sys; from jobs.cli import main; main(['--help']);"
        "heavy = {'torch', 'ray', 'mlflow', 'deepspeed', 'jsonargparse', 'numpy'};"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
