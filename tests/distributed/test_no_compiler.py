"""Images hold no compiled operator of DeepSpeed: training must ask for none."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.training_run import run, write_recipe

pytestmark = pytest.mark.distributed


def test_training_compiles_nothing(
    data: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, no_tools = tmp_path / "built", tmp_path / "no-tools"
    no_tools.mkdir()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(built))
    monkeypatch.setenv("PATH", str(no_tools))
    monkeypatch.setenv("CXX", "/no/compiler")
    recipe = write_recipe(
        tmp_path / "run.yaml",
        base,
        data,
        training={"max_steps": 2, "save_every_steps": 2},
        engine={"zero_stage": 3, "offload_optimizer": "cpu", "offload_parameters": "cpu"},
    )
    status, said = run(recipe)
    assert status == 0, said
    assert not built.exists()
