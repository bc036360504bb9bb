"""The worlds of both domains that tests of the embedded world look at, and how they read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SCENES = {"train": 450, "val": 30, "test": 30}


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
