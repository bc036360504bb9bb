"""The documentation's recipes can be read, and its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from data_prep.config import PrepareConfig
from jobs.sweep.config import SweepConfig
from jobs.sweep.trials import plan
from pipeline.config import RunConfig
from pipeline.config_reader import load

ROOT = Path(__file__).parents[3]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
YOUR_OWN_DATA = ROOT / "docs" / "how-to" / "your-own-data.md"


def recipe_of(page: Path, name: str, folder: Path) -> Path:
    found = re.search(rf"```yaml\n# {re.escape(name)}\n(.*?)```", page.read_text(), re.DOTALL)
    assert found is not None, f"{page} has no recipe {name}"
    path = folder / name
    path.write_text(found.group(1))
    return path


def test_the_recipe_for_preparation_is_valid(tmp_path: Path) -> None:
    config = load(PrepareConfig, [recipe_of(YOUR_OWN_DATA, "prepare.yaml", tmp_path)])
    assert set(config.datasets) == {"refcoco_train", "refcoco_val", "vqa_val"}


def test_the_recipe_for_training_is_valid(tmp_path: Path) -> None:
    config = load(RunConfig, [recipe_of(YOUR_OWN_DATA, "train.yaml", tmp_path)])
    assert config.tuning.prefix.length == 64
    assert config.data.train == ["data/prepared/refcoco_train"]


def test_the_recipe_for_several_prompts_is_valid(tmp_path: Path) -> None:
    page = ROOT / "docs" / "how-to" / "many-prompts.md"
    config = load(RunConfig, [recipe_of(page, "many.yaml", tmp_path)])
    assert config.prompt_names() == ("grounding", "vqa")
    assert [config.alone(name).tuning.prefix.length for name in config.prompt_names()] == [64, 32]


def test_the_recipe_for_a_sweep_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    page = ROOT / "docs" / "how-to" / "sweeps.md"
    sweep = plan(load(SweepConfig, [recipe_of(page, "sweep.yaml", tmp_path)]))
    assert (len(sweep.trials), sweep.metric.name) == (6, "grounding/acc_at_0.5")
    demo = plan(load(SweepConfig, ["jobs/recipes/sweep_demo_grounding.yaml"]))
    assert len({trial.run.optimizer.lr for trial in demo.trials}) == 6


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target
