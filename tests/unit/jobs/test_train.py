"""What the command settles before it starts ranks."""

from __future__ import annotations

import pytest

from jobs.train import devices


@pytest.mark.parametrize(
    ("seen", "found"),
    [
        ("6,7", ["6", "7"]),
        ("GPU-a,GPU-b,GPU-c", ["GPU-a", "GPU-b"]),
        ("5", ["0", "1"]),
        ("", ["0", "1"]),
        (None, ["0", "1"]),
    ],
)
def test_ranks_get_the_gpus_that_their_command_was_given(
    seen: str | None, found: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if seen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    assert devices(2) == found
