"""Cut texts are counted over all ranks, and said at first sight and at the end."""

from __future__ import annotations

import torch

from pipeline.training.cut_texts import CutReport, CutTexts
from pipeline.training.data_config import DataConfig
from pipeline.training.world import World

ALONE = World(rank=0, size=1, device=torch.device("cpu"))


def test_nothing_is_said_of_texts_that_fit() -> None:
    said: list[str] = []
    report = CutReport(CutTexts(samples=50), DataConfig(), ALONE)
    assert report.report(said.append, last=False) == {}
    assert report.report(said.append, last=True) == {}
    assert said == []


def test_the_first_cut_is_said_and_all_of_them_at_the_end() -> None:
    said: list[str] = []
    counts = CutTexts(samples=50)
    report = CutReport(counts, DataConfig(max_target_length=20), ALONE)
    report.report(said.append, last=False)
    counts.samples, counts.targets = 100, 3
    assert report.report(said.append, last=False)["data/cut_targets"] == 3
    counts.samples, counts.targets, counts.sources = 200, 7, 1
    metrics = report.report(said.append, last=False)
    assert metrics == {"data/cut_instructions": 1.0, "data/cut_targets": 7.0}
    assert said == [
        "of 100 samples so far were cut: 3 targets to data.max_target_length = 20 tokens"
    ]
    report.report(said.append, last=True)
    assert said[1:] == [
        "of 200 samples so far were cut: 1 instructions to data.max_source_length = 80 tokens,"
        " 7 targets to data.max_target_length = 20 tokens"
    ]
