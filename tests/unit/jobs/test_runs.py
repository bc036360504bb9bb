"""`prefixworks runs` on run folders as they lie there, without a store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.cli import run_stage
from jobs.runs import main
from pipeline.tracking.config import StoreLocation
from pipeline.tracking.identity import new_identity
from pipeline.tracking.journal import Journal
from pipeline.tracking.reports import metrics_entry

NOWHERE = "postgresql://me:secret@127.0.0.1:9/mlflow"


@pytest.fixture
def runs_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two runs, one finished and one that died, and a folder that is no run."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in ("first", "second"):
        journal = Journal(tmp_path / name)
        location = StoreLocation(uri=NOWHERE, artifact_root=None)
        new_identity(f"{name} (prefix 4)", "vqa on ofa-micro", location).save(journal.folder)
        journal.append({"kind": "begin"})
        journal.append(metrics_entry(3, {"train/loss": 0.5}))
        node = Journal(tmp_path / name, node="other")
        node.append(metrics_entry(0, {"system/other/cpu": 0.5}))
    journal.append({"kind": "end", "status": "FINISHED", "time_ms": 7})
    journal.refuse({"kind": "tags"}, "too long")
    (tmp_path / "second" / "metrics.jsonl").write_text('{"step": 3}\n{"st')
    (tmp_path / "evaluation").mkdir()
    return tmp_path


def test_list_shows_every_tracked_run(runs_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", f"--output-dir={runs_dir}", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["folder"], first["status"], first["step"]) == (
        str(runs_dir / "first"),
        "died",
        None,
    )
    assert first["pending"] == {"begin": 1, "metrics": 2}
    assert (second["status"], second["step"], second["waiting"]) == ("finished", 3, 4)
    assert second["refused"] == 1
    assert main(["list", f"--output-dir={runs_dir}"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["RUN", "STATUS", "STEP", "TO"]
    assert [row.split()[1] for row in rows] == ["died", "finished"]


def test_show_tells_where_a_run_is_without_its_password(
    runs_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", str(runs_dir / "second")]) == 0
    said = capsys.readouterr().out
    assert "postgresql://me:***@127.0.0.1:9/mlflow" in said
    assert "secret" not in said
    assert "1 begin, 1 end, 2 metrics" in said


def test_a_dry_run_delivers_nothing(runs_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sync", f"--output-dir={runs_dir}", "--dry-run"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["RUN", "WOULD", "DELIVER"]
    assert [row.split()[1] for row in rows] == ["3", "4"]
    assert len(list(Journal(runs_dir / "first").pending())) == 2


def test_a_sync_without_the_password_says_what_to_do_and_goes_through_all_runs(
    runs_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sync", f"--output-dir={runs_dir}", "--json"]) == 1
    said = capsys.readouterr()
    rows = json.loads(said.out)
    assert [row["left"] for row in rows] == [3, 4]
    errors = said.err.splitlines()
    assert len(errors) == 2
    assert all("set MLFLOW_TRACKING_URI to the whole address" in line for line in errors)
    assert "secret" not in said.out + said.err


@pytest.mark.parametrize("command", ["show", "sync"])
def test_a_folder_that_is_no_tracked_run_is_named(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_stage(main, [command, str(tmp_path / "typo")]) == 1
    error = capsys.readouterr().err
    assert error == f"error: {tmp_path / 'typo'} is not the folder of a tracked run\n"
    assert not (tmp_path / "typo").exists()


def test_a_damaged_identity_is_named(runs_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs_dir / "first" / "tracking" / "run.json").write_text("{")
    assert run_stage(main, ["list", f"--output-dir={runs_dir}"]) == 1
    assert "first/tracking/run.json cannot be read" in capsys.readouterr().err


def test_no_runs_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", f"--output-dir={tmp_path}"]) == 0
    assert capsys.readouterr().out == f"no tracked runs in {tmp_path}\n"
    assert main(["list", f"--output-dir={tmp_path}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
