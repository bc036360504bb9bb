"""A worker's memory of images has a bound, and forgets nothing that matters."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.config import ImagePolicy
from data_prep.image_cache import ImageCache
from data_prep.quarantine import Rejected
from tests.support.raw_data import jpeg


def test_the_images_used_last_are_kept_within_the_bound(tmp_path: Path) -> None:
    for i in range(40):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg(i))
    size = len(jpeg(0)) + 1024
    cache = ImageCache(ImagePolicy(), limit=4 * size)
    for i in range(40):
        assert cache(str(tmp_path), f"{i}.jpg", "name").content == jpeg(i)
        assert cache(str(tmp_path), "0.jpg", "name").content == jpeg(0)
        assert cache.bytes <= 4 * size
    # 0 was used all the time and read once.
    assert cache.loaded == 40
    cache(str(tmp_path), "1.jpg", "name")
    assert cache.loaded == 41


def test_a_bad_image_is_read_once_and_rejected_each_time(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"no image")
    cache = ImageCache(ImagePolicy())
    with pytest.raises(Rejected, match="not_an_image"):
        cache(str(tmp_path), "a.jpg", "a.jpg")
    path.unlink()
    with pytest.raises(Rejected, match="not_an_image"):
        cache(str(tmp_path), "a.jpg", "a.jpg")
    assert cache.loaded == 0


def test_one_image_under_two_names_keeps_both(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(jpeg(1))
    cache = ImageCache(ImagePolicy())
    address = f"blob@0+{len(jpeg(1))}"
    names = [cache(str(tmp_path), address, name).facts.name for name in ("a", "b", "a")]
    assert names == ["a", "b", "a"]
