"""The command that writes manifests, on the description that the documentation shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from jobs.launch.kubernetes.__main__ import main
from pipeline.errors import ConfigError
from tests.support.kubernetes_schemas import validate

ROOT = Path(__file__).parents[4]
PAGE = ROOT / "docs" / "how-to" / "kubernetes.md"


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """The page's job, with the recipe that it names."""
    found = re.search(r"```yaml\n# job.yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    path = tmp_path / "job.yaml"
    path.write_text(found[1].replace("jobs/recipes", str(ROOT / "jobs" / "recipes")))
    return path


def test_it_writes_what_kubectl_takes_and_says_how(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "man ifests"
    assert main([f"--config={job}", f"--output={folder}"]) == 0
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["00-configmap.yaml", "01-service.yaml", "02-job.yaml"]
    for name in names:
        validate(yaml.safe_load((folder / name).read_text()))
    said = capsys.readouterr().out
    assert f"kubectl --namespace=ml apply '--filename={folder}'" in said
    # What is there is never written over.
    with pytest.raises(ConfigError, match="holds files; name another folder"):
        main([f"--config={job}", f"--output={folder}"])


def test_a_dry_run_shows_the_same_and_writes_nothing(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "none"
    arguments = [f"--config={job}", "--kubernetes.kind=jobset", f"--output={output}"]
    assert main([*arguments, "--dry-run"]) == 0
    assert not output.exists()
    _, *shown = capsys.readouterr().out.split("---\n")
    assert main(arguments) == 0
    written = sorted(output.iterdir())
    assert [f"# {path.name}\n{path.read_text()}" for path in written] == shown


def test_a_folder_that_cannot_be_made(job: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="output = "):
        main([f"--config={job}", f"--output={tmp_path / 'file' / 'manifests'}"])
