"""The page of a run's curves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.tracking.curves import draw_curves, read_points


def test_points_are_read_by_name_and_damaged_lines_left_out(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    lines = [{"step": n, "train/loss": 1 / n, "train/lr": 0.1} for n in (1, 2)]
    lines.append({"step": 2, "validation/loss": float("nan")})
    text = "\n".join([*map(json.dumps, lines), "[1]", "7", '{"step": 3, "train/lo'])
    file.write_text(text)
    assert read_points(file) == {
        "train/loss": [(1, 1.0), (2, 0.5)],
        "train/lr": [(1, 0.1), (2, 0.1)],
    }


def test_the_same_points_give_the_same_picture_with_every_curve_in_it(tmp_path: Path) -> None:
    points = {
        "train/loss": [(n, 5.0 / (n + 1)) for n in range(9_000)],
        "train/lr": [(n, 0.001) for n in range(9_000)],
        "train/data_wait_share": [(n, 0.5) for n in range(9_000)],
        "validation/loss": [(10, 2.0), (8_000, 1.0)],
    }
    for name in ("a.png", "b.png"):
        draw_curves(points, "run", tmp_path / "pictures" / name)
    first, second = (tmp_path / "pictures" / name for name in ("a.png", "b.png"))
    assert first.read_bytes() == second.read_bytes()
    pixels = np.asarray(Image.open(first).convert("RGB")).reshape(-1, 3)
    for color in ((31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40)):
        assert np.any(np.all(pixels == color, axis=1)), color
    draw_curves({}, "nothing yet", first)
    assert first.read_bytes() != second.read_bytes()
