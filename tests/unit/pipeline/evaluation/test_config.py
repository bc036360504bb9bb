"""Settings of an evaluation that cannot work."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.evaluation.config import EvaluationConfig


@pytest.mark.parametrize(
    "settings", [{"beam_size": 0}, {"batch_size": 0}, {"max_samples": 0}, {"tasks": []}]
)
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        EvaluationConfig(**settings)
