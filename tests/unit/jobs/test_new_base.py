"""The start of a base: a tokenizer of the datasets' texts beside an architecture."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.cli import main
from jobs.new_base import texts_of
from model.checkpoint import load_config
from model.ofa import OFA
from model.tokenizer import OFATokenizer
from tests.support.small_world import prepared_world


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_world(tmp_path_factory.mktemp("world"), scenes=30, domain="upstream")


def test_a_new_base_fits_its_tokenizer_and_reads_every_text(dataset: Path, tmp_path: Path) -> None:
    output = tmp_path / "base"
    arguments = [f"--output={output}", f"--datasets=[{dataset}]", "--text_count=400"]
    assert main(["new-base", *arguments]) == 0
    config = load_config(str(output))
    tokenizer = OFATokenizer.from_file(output / "tokenizer.json")
    assert config.vocab == tokenizer.layout
    assert 3e6 < sum(parameter.numel() for parameter in OFA(config).parameters()) < 8e6
    texts = set(texts_of([str(dataset)]))
    assert any("which region" in text for text in texts)
    assert all(tokenizer.decode(tokenizer.encode(text)) == text for text in texts)
    assert len(tokenizer.encode(" square")) == 1


def test_the_same_datasets_give_the_same_bytes(dataset: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert main(["new-base", f"--output={tmp_path / name}", f"--datasets=[{dataset}]"]) == 0
    for file in ("config.json", "tokenizer.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_dry_run_writes_nothing(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"--output={tmp_path / 'base'}", f"--datasets=[{dataset}]", "--dry-run"]
    assert main(["new-base", *arguments]) == 0
    assert "would learn a tokenizer from" in capsys.readouterr().out
    assert not (tmp_path / "base").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--architecture.attention_heads=5"], "d_model 192 is no multiple of 5"),
        (["--text_count=10"], "text_count 10 is below 256"),
        (["--architecture.widht=3"], "architecture.widht"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    arguments: list[str],
    line: str,
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "base"
    assert main(["new-base", f"--output={output}", f"--datasets=[{dataset}]", *arguments]) == 2
    printed = capsys.readouterr().err
    assert line in printed
    assert len(printed.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_left_alone(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "base").mkdir()
    arguments = [f"--output={tmp_path / 'base'}", f"--datasets=[{dataset}]"]
    assert main(["new-base", *arguments]) == 2
    assert "exists" in capsys.readouterr().err
    assert list((tmp_path / "base").iterdir()) == []
