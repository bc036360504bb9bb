"""Prompts of every method predict side by side in one process."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.checkpoint import fingerprint, load_base
from pipeline.registry.artifact import save_prompt
from pipeline.registry.bases import shared_base
from pipeline.registry.predictor import Predictor
from tests.support.small_prompt import picture, small_base, small_meta, tuned

METHODS = ("prefix", "adapter", "adapter_prefix", "bitfit")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, an artifact of each method, and a picture."""
    folder = tmp_path_factory.mktemp("place")
    small_base(folder / "base")
    for method in METHODS:
        base = load_base(str(folder / "base"))
        before = fingerprint(base)
        model = tuned(base, method=method)
        meta = small_meta(model, name=method, base_fingerprint=before)
        save_prompt(folder / method, model, meta)
    picture(folder)
    return folder


def test_no_method_disturbs_another(place: Path) -> None:
    base = str(place / "base")

    def score(predictor: Predictor) -> float:
        return predictor.predict(str(place / "picture.png"), "what color is it?").score

    alone = {}
    for method in METHODS:
        predictor = Predictor.from_folder(place / method, base=base)
        shares = predictor.base.model is shared_base(base).model
        assert shares == (method != "bitfit")
        alone[method] = score(predictor)
    assert len(set(alone.values())) == len(METHODS)
    together = {m: Predictor.from_folder(place / m, base=base) for m in METHODS}
    assert {method: score(predictor) for method, predictor in together.items()} == alone
    assert fingerprint(shared_base(base).model) == fingerprint(load_base(base))
