"""Where a run comes from."""

import subprocess
from pathlib import Path

from pipeline.tracking.provenance import flatten, git_state, library_versions


def test_flatten_gives_dotted_names_and_texts() -> None:
    values = {"a": {"b": 1, "c": {"d": None}}, "e": ["x", 2], "f": "text", "g": {}}
    assert flatten(values) == {"a.b": "1", "a.c.d": "null", "e": '["x", 2]', "f": "text", "g": "{}"}


def test_git_state_names_commit_and_changes(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        command = ["git", "-C", str(tmp_path), *identity, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert git_state(tmp_path) == {}
    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-q", "-m", "first")
    state = git_state(tmp_path)
    assert state == {"mlflow.source.git.commit": git("rev-parse", "HEAD"), "git.dirty": "false"}
    (tmp_path / "file").write_text("2")
    assert git_state(tmp_path)["git.dirty"] == "true"


def test_library_versions_name_torch() -> None:
    assert {"python", "torch", "mlflow"} <= set(library_versions())
