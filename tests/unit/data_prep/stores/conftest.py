"""Indexes of archives go into a folder of the test, and stores are opened anew."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep.stores import close_stores


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("PREFIXWORKS_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache" / "archives"
    close_stores()
