"""Worlds that the tests of this folder only read."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.synthetic import write_world
from data_prep.world.vocabulary import DOMAINS
from tests.support.worlds import SCENES


@pytest.fixture(scope="session")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("worlds")
    for domain in DOMAINS:
        assert write_world(root / domain, domain=domain, scenes=SCENES, seed=5, processes=1)
    return {domain: root / domain for domain in DOMAINS}
