"""A run on closed answers: two ranks, its files, its evaluation and its prompt."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.cli import main
from pipeline.config import RunConfig
from pipeline.errors import CheckpointError, ConfigError, DataError, TrainingError
from pipeline.registry.artifact import read_record
from pipeline.registry.export import export_run
from pipeline.registry.predictor import Predictor
from pipeline.training.closed_answers import answers_of_run, close_answers
from pipeline.training.data import ShardReader
from pipeline.training.data_config import AnswerListConfig, DataConfig
from pipeline.training.world import World
from tests.support.training_run import (
    losses_of,
    records_of,
    run,
    run_dir_of,
    write_recipe,
)

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
SECTIONS: dict[str, Any] = {
    "training": {
        "constrain_loss": ["vqa", "grounding", "entailment"],
        "dropout": 0.0,
        "max_steps": 3,
        "validation_samples": 4,
        "best_metric": "vqa/accuracy",
        "beam_size": 2,
    },
}


def recipe_for(path: Path, base: Path, data: Path, **vqa: object) -> Path:
    reading = {
        "validation": [str(data)],
        "vqa": {"answers": "closed", **vqa},
        # Shorter than some instructions, to see that cut ones are counted.
        "max_source_length": 12,
    }
    return write_recipe(path, base, data, data=reading, **SECTIONS)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, base: Path, data: Path) -> Path:
    """The recipe of a finished run."""
    path = recipe_for(tmp_path_factory.mktemp("closed") / "closed.yaml", base, data, most=6)
    status, said = run(path)
    assert status == 0, said
    return path


def test_the_list_is_that_of_the_most_frequent_favourites(recipe: Path, data: Path) -> None:
    with ShardReader(data) as reader:
        samples = [reader.record(row) for row, task in enumerate(reader.tasks) if task == "vqa"]
    counts = Counter(sample.answers[0].text for sample in samples)
    ranked = sorted(counts, key=lambda text: (-counts[text], text))
    assert list(answers_of_run(run_dir_of(recipe))) == ranked[:6]


def test_training_and_validation_are_over_the_list(recipe: Path) -> None:
    assert all(0 < loss < 1000 for loss in losses_of(recipe).values())
    measured = [record for record in records_of(recipe) if "vqa/accuracy" in record]
    assert measured[-1]["validation/loss"] > 0


def evaluated(recipe: Path, data: Path, out: Path, *arguments: str) -> list[str]:
    few = [f"--dataset={data}", "--tasks=[vqa]", "--max_samples=6", "--pictures=0"]
    place = [f"--prompt={run_dir_of(recipe)}", f"--output={out}"]
    assert main(["evaluate", *place, *few, *arguments]) == 0
    return [row["text"] for row in json.loads((out / "report.json").read_text())["predictions"]]


def test_each_way_of_answering_keeps_to_the_list(recipe: Path, data: Path, tmp_path: Path) -> None:
    known = set(answers_of_run(run_dir_of(recipe)))
    usual = evaluated(recipe, data, tmp_path / "usual")
    searched = evaluated(recipe, data, tmp_path / "trie", "--vqa=trie", "--beam_size=6")
    scored = evaluated(recipe, data, tmp_path / "all", "--vqa=candidates")
    assert set(usual) | set(searched) | set(scored) <= known
    # A beam as wide as the list leaves out no answer.
    assert searched == scored
    assert set(evaluated(recipe, data, tmp_path / "open", "--vqa=open")) - known
    listed = tmp_path / "list.txt"
    listed.write_text("purple\n")
    named = evaluated(
        recipe, data, tmp_path / "named", "--vqa=candidates", f"--vqa_answers={listed}"
    )
    assert set(named) == {"purple"}


def test_the_prompt_carries_its_list(
    recipe: Path, base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = answers_of_run(run_dir_of(recipe))
    folder = export_run(run_dir_of(recipe), tmp_path / "prompt")
    assert read_record(folder).meta.answers == known
    predictor = Predictor.from_folder(folder, str(base))
    with ShardReader(data) as reader:
        sample, image = reader.read(reader.tasks.index("vqa"))
    answer = predictor.predict(image, sample.text, task="vqa", beam_size=3)
    assert answer.text in known
    few = [f"--base={base}", f"--dataset={data}", "--tasks=[vqa]", "--max_samples=3"]
    out = f"--output={tmp_path / 'out'}"
    assert main(["evaluate", f"--prompt={folder}", out, *few, "--vqa=candidates"]) == 0
    rows = json.loads((tmp_path / "out" / "report.json").read_text())["predictions"]
    assert {row["text"] for row in rows} <= set(known)
    assert main(["evaluate", out, *few, "--vqa=trie"]) == 2
    assert "vqa = trie: there is no list of answers" in capsys.readouterr().err


def test_a_damaged_list_is_said(recipe: Path, tmp_path: Path) -> None:
    cases = (("{", "cannot be read"), ("[]", "no list"), ('{"answers": [1]}', "no list"))
    for content, said in cases:
        (tmp_path / "answers.json").write_text(content)
        with pytest.raises(CheckpointError, match=said):
            answers_of_run(tmp_path)
    record = json.loads((run_dir_of(recipe) / "answers.json").read_text())
    (tmp_path / "answers.json").write_text(json.dumps({**record, "answers": ["a", 1]}))
    with pytest.raises(CheckpointError, match="is damaged"):
        answers_of_run(tmp_path)


@pytest.mark.parametrize(
    ("reading", "said"),
    [
        ({"tasks": ["caption"]}, r"no questions \(vqa\) are learnt"),
        ({"task_weights": {"caption": 1.0}}, r"no questions \(vqa\) are learnt"),
        ({"vqa": AnswerListConfig(answers="closed", min_questions=9999)}, "of so many of the"),
        ({"vqa": AnswerListConfig(answers="closed", file="nowhere.txt")}, "nowhere.txt cannot be"),
    ],
)
def test_lists_that_cannot_be_are_refused(
    data: Path, tmp_path: Path, reading: dict[str, Any], said: str
) -> None:
    closed = {"vqa": AnswerListConfig(answers="closed"), **reading}
    config = RunConfig(name="run", output_dir=str(tmp_path), data=DataConfig(**closed))
    with ShardReader(data) as reader, pytest.raises((ConfigError, DataError), match=said):
        close_answers(config, [reader], ALONE)


def test_a_list_is_counted_again_only_of_other_data_or_settings(data: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    copy = Path(shutil.copytree(data, tmp_path / "copy"))

    def closed_to(most: int) -> int:
        vqa = AnswerListConfig(answers="closed", most=most)
        config = RunConfig(name="run", output_dir=str(tmp_path), data=DataConfig(vqa=vqa))
        with ShardReader(copy) as reader:
            return len(close_answers(config, [reader], ALONE))

    assert [closed_to(3), closed_to(2)] == [3, 2]
    file = tmp_path / "run" / "answers.json"
    whole = file.read_text()
    # As a full disk leaves it: the list is made of the data, so it is made again.
    file.write_text(whole[:40])
    assert (closed_to(2), file.read_text()) == (2, whole)
    for shard in copy.glob("*.tar"):
        shard.unlink()
    assert closed_to(2) == 2
    with pytest.raises(DataError, match="cannot be opened"):
        closed_to(3)


def test_a_list_that_cannot_be_written_is_said(data: Path, tmp_path: Path) -> None:
    vqa = AnswerListConfig(answers="closed")
    config = RunConfig(name="nowhere", output_dir=str(tmp_path), data=DataConfig(vqa=vqa))
    with (
        ShardReader(data) as reader,
        pytest.raises(TrainingError, match=r"answers\.json cannot be written"),
    ):
        close_answers(config, [reader], ALONE)


def test_one_rank_learns_what_two_ranks_learn(recipe: Path, base: Path, data: Path) -> None:
    alone = recipe_for(recipe.with_name("alone.yaml"), base, data, most=6)
    sizes = ["--engine.processes=1", "--training.batch_size_per_rank=4"]
    status, said = run(alone, *sizes, "--training.best_metric=null")
    assert status == 0, said
    assert answers_of_run(run_dir_of(alone)) == answers_of_run(run_dir_of(recipe))
    cuts = [
        [r["data/cut_instructions"] for r in records_of(path) if "train/lr" in r]
        for path in (alone, recipe)
    ]
    assert cuts[0] == cuts[1]
    assert 0 < cuts[0][-1] < 12
    assert said.count(f"of 12 samples so far were cut: {cuts[0][-1]:.0f} instructions") == 1
    assert losses_of(alone) == pytest.approx(losses_of(recipe), rel=1e-4)
