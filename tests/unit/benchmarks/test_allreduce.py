"""Two real processes sum what they are told to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import allreduce


def test_two_processes_meet_and_are_timed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.json"
    allreduce.main(["--rounds", "3", "--values", "4", "1000", "--json", str(file)])
    rows = json.loads(file.read_text())
    assert [row["bytes"] for row in rows] == [16, 4000]
    for row in rows:
        assert 0 < row["fastest_s"] <= row["median_s"]
        assert row["gb_per_s"] == pytest.approx(row["bytes"] / row["median_s"] / 1e9)
    assert "load of the machine" in capsys.readouterr().out


def test_one_process_alone_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        allreduce.main(["--processes", "1"])
    assert "there must be two processes" in capsys.readouterr().err
