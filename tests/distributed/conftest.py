"""Data, a base and a run that nothing happened to, made once for all tests of training."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.small_world import prepared_world
from tests.support.training_run import run, small_base, write_recipe


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_world(tmp_path_factory.mktemp("data"), scenes=6)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    return small_base(tmp_path_factory.mktemp("base") / "base", data)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, data: Path, base: Path) -> Path:
    """The recipe of a run that nothing happened to."""
    recipe = write_recipe(tmp_path_factory.mktemp("undisturbed") / "run.yaml", base, data)
    status, said = run(recipe)
    assert status == 0, said
    return recipe
