"""`prefixworks evaluate` on a small world: base, artifact and run, report and pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from jobs.cli import main
from model.ofa.model import OFA
from model.tuning import TunedModel
from pipeline.config import BaseConfig, RunConfig
from pipeline.config_reader import save
from pipeline.evaluation.config import EvaluationConfig
from pipeline.evaluation.evaluator import evaluate
from pipeline.evaluation.subject import load_subject
from pipeline.tasks.registry import get_task, task_names
from pipeline.training.data_config import DataConfig
from tests.support.small_prompt import small_base, small_prompt, tuned
from tests.support.small_world import prepared_world

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases") / "ofa-small"
    small_base(folder)
    return folder


@pytest.fixture
def base(base_folder: Path) -> OFA:
    found = load_subject(None, str(base_folder)).model
    assert isinstance(found, OFA)
    return found


def _run_folder(folder: Path, base_folder: Path, model: TunedModel, dataset: Path) -> Path:
    """A run as training leaves it behind."""
    config = RunConfig(
        name="small",
        base=BaseConfig(path=str(base_folder)),
        tuning=model.config,
        # As small_prompt's record says.
        data=DataConfig(max_source_length=40),
        evaluation=EvaluationConfig(dataset=str(dataset)),
    )
    run = folder / "small"
    (run / "best").mkdir(parents=True)
    save(config, run / "config.yaml")
    save_file(model.trainable_state(), run / "best" / "trainable.safetensors")
    (run / "best" / "state.json").write_text(json.dumps({"step": 12}))
    return run


def _report(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


def test_base_alone_is_scored_on_every_task(
    base_folder: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    status = main(
        [
            "evaluate",
            f"--base={base_folder}",
            f"--dataset={dataset}",
            f"--output={out}",
            "--max_samples=3",
            "--batch_size=2",
            "--beam_size=2",
        ]
    )
    assert status == 0
    report = _report(out)
    assert {get_task(name).metric for name in task_names()} <= set(report["metrics"])
    assert report["samples_per_task"] == dict.fromkeys(sorted(task_names()), 3)
    assert len(report["predictions"]) == report["samples"] == 15
    assert report["base_fingerprint"].startswith("sha256:")
    assert report["settings"]["beam_size"] == 2
    with Image.open(out / "predictions.png") as sheet:
        assert sheet.width > 500
    printed = capsys.readouterr().out
    assert "acc_at_0.5" in printed
    assert "ofa-small on world" in printed


def test_run_and_its_artifact_give_the_same_answers(
    base: OFA, base_folder: Path, dataset: Path, tmp_path: Path
) -> None:
    model = small_prompt(tmp_path / "prompt", base, tasks=("grounding",))
    run = _run_folder(tmp_path / "runs", base_folder, model, dataset)
    few = ["--tasks=[grounding, entailment]", "--max_samples=4", "--pictures=2"]
    assert main(["evaluate", f"--prompt={run}", *few]) == 0
    artifact = [f"--prompt={tmp_path / 'prompt'}", f"--base={base_folder}"]
    out = [f"--dataset={dataset}", f"--output={tmp_path / 'artifact'}"]
    assert main(["evaluate", *artifact, *out, *few]) == 0
    of_run, of_artifact = _report(run / "evaluation"), _report(tmp_path / "artifact")
    assert of_run["predictions"] == of_artifact["predictions"]
    assert of_run["metrics"] == of_artifact["metrics"]
    assert (run / "evaluation" / "predictions.png").is_file()


def test_the_prompt_changes_answers_and_the_batch_does_not(
    base: OFA, base_folder: Path, dataset: Path
) -> None:
    tokenizer = load_subject(None, str(base_folder)).tokenizer
    model = tuned(base)
    few = {"tasks": ["grounding", "entailment"], "max_samples": 6, "beam_size": 3}

    def rows(of: TunedModel | OFA, batch_size: int) -> list[dict[str, Any]]:
        config = EvaluationConfig(**few, batch_size=batch_size)
        return [row.to_json() for row in evaluate(of, tokenizer, dataset, config, 64).predictions]

    one, many = rows(model, 1), rows(model, 5)
    assert [(r["uid"], r["text"], r["box"]) for r in one] == [
        (r["uid"], r["text"], r["box"]) for r in many
    ]
    assert [r["score"] for r in one] == pytest.approx([r["score"] for r in many], abs=1e-4)
    assert [r["score"] for r in rows(base, 5)] != pytest.approx(
        [r["score"] for r in many], abs=1e-3
    )


def test_evaluation_leaves_the_model_as_it_was(base: OFA, base_folder: Path, dataset: Path) -> None:
    subject = load_subject(None, str(base_folder))
    model = tuned(base)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = EvaluationConfig(tasks=["vqa"], max_samples=2)
    # Training goes on afterwards: what evaluation leaves in the base's caches must allow gradients.
    model.train()
    evaluate(model, subject.tokenizer, dataset, config, 64)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    ids = torch.tensor([[0, 5, 2]])
    logits = model(ids, torch.zeros(1, 3, 64, 64), torch.tensor([True]), ids)
    logits.sum().backward()
    assert any(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_a_dry_run_says_what_it_would_do(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--tasks=[vqa]", "--max_samples=5", "--dry-run"]
    assert main(["evaluate", f"--dataset={dataset}", *few]) == 0
    printed = capsys.readouterr().out
    assert "would score the base ofa-micro alone on world: 5 vqa" in printed


def _one_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    # A progress bar may stand above the error, a traceback may not.
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1
    assert not any("Traceback" in line for line in lines)
    return errors[0]


def test_wrong_input_is_one_clear_line(
    base_folder: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = [f"--base={base_folder}", f"--dataset={dataset}"]
    assert main(["evaluate", "--beam_sise=3", *here]) == 2
    assert "beam_size" in _one_line(capsys)
    assert main(["evaluate", f"--base={base_folder}"]) == 2
    assert "dataset" in _one_line(capsys)
    assert main(["evaluate", "--tasks=[groundin]", *here]) == 2
    assert "groundin" in _one_line(capsys)
    assert main(["evaluate", f"--prompt={tmp_path}", *here]) == 2
    assert "neither a run folder" in _one_line(capsys)
    assert main(["evaluate", f"--base={base_folder}", f"--dataset={tmp_path}"]) == 1
    assert "manifest.json" in _one_line(capsys)


def test_a_prompt_for_another_base_is_refused(
    base: OFA, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_base(tmp_path / "other", seed=9, name="ofa-other")
    small_prompt(tmp_path / "prompt", base)
    arguments = [f"--prompt={tmp_path / 'prompt'}", f"--base={tmp_path / 'other'}"]
    assert main(["evaluate", *arguments, f"--dataset={dataset}"]) == 1
    assert "was made for base ofa-small" in _one_line(capsys)


def test_a_run_without_a_best_checkpoint_is_refused(
    base: OFA,
    base_folder: Path,
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = _run_folder(tmp_path, base_folder, tuned(base), dataset)
    whole = (run / "best" / "trainable.safetensors").read_bytes()
    (run / "best" / "trainable.safetensors").write_bytes(whole[: len(whole) // 2])
    assert main(["evaluate", f"--prompt={run}"]) == 1
    assert "trainable.safetensors" in _one_line(capsys)
    (run / "best" / "trainable.safetensors").unlink()
    assert main(["evaluate", f"--prompt={run}"]) == 1
    assert "no best checkpoint yet" in _one_line(capsys)


def test_a_corrupt_shard_is_named(
    base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = prepared_world(tmp_path, scenes=2)
    shard = sorted(folder.glob("shard-*.tar"))[0]
    content = bytearray(shard.read_bytes())
    for place in range(0, len(content), 64):
        content[place] ^= 0xFF
    shard.write_bytes(content)
    arguments = [f"--base={base_folder}", f"--dataset={folder}", f"--output={tmp_path / 'out'}"]
    assert main(["evaluate", *arguments]) == 1
    assert shard.name in _one_line(capsys)
    assert not (tmp_path / "out" / "report.json").exists()
