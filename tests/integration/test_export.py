"""From the folder of a finished run to a registered version that knows where it comes from."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch

from data_prep.manifest import read_manifest
from model.checkpoint import fingerprint, load_base
from model.tuning import build_tuned_model
from model.tuning.config import PrefixConfig, TuningConfig
from pipeline.config import BaseConfig, RunConfig
from pipeline.config_reader import load, save
from pipeline.errors import RegistryError
from pipeline.evaluation.subject import load_subject
from pipeline.registry.artifact import attach_prompt, read_record
from pipeline.registry.export import export_run, register_source
from pipeline.tracking.config import TrackingConfig, resolve_store
from pipeline.tracking.delivery import find_experiment, open_client
from pipeline.tracking.identity import new_identity
from pipeline.training.data_config import DataConfig
from tests.support.mlflow_store import make_store
from tests.support.prepared import manifest_folder
from tests.support.small_prompt import small_base

TUNING = TuningConfig(prefix=PrefixConfig(length=3, projection_dim=8))


def finish(
    run: Path, base: Path, seed: int, tuning: TuningConfig = TUNING
) -> dict[str, torch.Tensor]:
    """Writes a best checkpoint as training leaves it."""
    torch.manual_seed(seed)
    model = build_tuned_model(load_base(str(base)), tuning)
    if tuning.method == "bitfit":
        state = model.trainable_state()
        model.load_trainable_state({n: torch.randn_like(tensor) for n, tensor in state.items()})
    (run / "best").mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(model.trainable_state(), run / "best" / "trainable.safetensors")
    (run / "best" / "state.json").write_text(json.dumps({"metrics": {"vqa/accuracy": 0.5}}))
    return model.export_state()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    small_base(tmp_path / "base")
    folder = tmp_path / "runs" / "shapes"
    data = manifest_folder(tmp_path / "data")
    config = RunConfig(
        name="shapes",
        output_dir=str(tmp_path / "runs"),
        base=BaseConfig(path=str(tmp_path / "base")),
        tuning=TUNING,
        data=DataConfig(train=[str(data)], validation=[str(data)], image_size=48),
    )
    save(config, folder / "config.yaml")
    make_store(tmp_path / "runs")
    return folder


def test_exported_run_tells_its_lineage(run: Path, tmp_path: Path) -> None:
    tensors = finish(run, tmp_path / "base", seed=1)
    folder = export_run(run)
    assert folder == run / "prompt"
    record = read_record(folder)
    base = load_base(str(tmp_path / "base"))
    digest = read_manifest(tmp_path / "data").digest
    assert record.meta.base.fingerprint == fingerprint(base)
    assert [task.name for task in record.meta.tasks] == ["grounding", "vqa"]
    assert record.meta.tasks[1].instruction == " {text}?"
    assert [(use.role, use.digest) for use in record.meta.data] == [
        ("train", digest),
        ("validation", digest),
    ]
    assert record.meta.metrics == {"vqa/accuracy": 0.5}
    assert record.meta.image_size == 48
    assert record.meta.config["data"]["image_size"] == 48
    raw = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert size <= raw * 1.01 + 32 * 1024
    attached = attach_prompt(base, folder).export_state()
    assert set(attached) == set(tensors)
    assert all(torch.equal(attached[name], tensors[name]) for name in tensors)


def test_trained_biases_belong_to_the_base_as_it_was(run: Path, tmp_path: Path) -> None:
    tuning = TuningConfig(method="bitfit")
    config = dataclasses.replace(load(RunConfig, [run / "config.yaml"]), tuning=tuning)
    save(config, run / "config.yaml")
    tensors = finish(run, tmp_path / "base", seed=1, tuning=tuning)
    base = load_base(str(tmp_path / "base"))
    before = fingerprint(base)
    record = read_record(export_run(run))
    assert record.meta.base.fingerprint == load_subject(run).base_fingerprint == before
    attached = attach_prompt(base, run / "prompt")
    assert fingerprint(attached.base) != before
    assert all(torch.equal(attached.export_state()[name], tensors[name]) for name in tensors)
    assert load_subject(run / "prompt", str(tmp_path / "base")).base_fingerprint == before


def evaluate(run: Path, score: float, later_s: float) -> None:
    """Leaves a report as the evaluation does, so many seconds after the best checkpoint."""
    report = run / "evaluation" / "report.json"
    report.parent.mkdir(exist_ok=True)
    values = {
        "dataset": {"name": "test", "digest": "sha256:dd"},
        "metrics": {"vqa/accuracy": score},
        "samples": 5,
    }
    report.write_text(json.dumps(values))
    (report.parent / "predictions.png").write_bytes(b"picture")
    trained = (run / "best" / "trainable.safetensors").stat().st_mtime
    os.utime(report, (trained + later_s, trained + later_s))


def test_an_evaluation_gives_scores_data_and_picture(run: Path, tmp_path: Path) -> None:
    finish(run, tmp_path / "base", seed=1)
    evaluate(run, 0.75, later_s=5)
    (run / "pictures").mkdir()
    (run / "pictures" / "loss.png").write_bytes(b"curve")
    folder = export_run(run, tmp_path / "elsewhere")
    assert (folder / "pictures" / "loss.png").read_bytes() == b"curve"
    record = read_record(folder)
    assert record.headline == ("vqa/accuracy", 0.75)
    assert record.meta.data[-1].role == "evaluation"
    assert record.meta.data[-1].digest == "sha256:dd"
    assert (folder / "pictures" / "predictions.png").read_bytes() == b"picture"


def test_a_report_of_an_older_checkpoint_does_not_count(run: Path, tmp_path: Path) -> None:
    finish(run, tmp_path / "base", seed=1)
    evaluate(run, 0.75, later_s=-5)
    record = read_record(export_run(run))
    assert record.headline == ("vqa/accuracy", 0.5)
    assert {use.role for use in record.meta.data} == {"train", "validation"}


def test_a_damaged_report_is_named(run: Path, tmp_path: Path) -> None:
    finish(run, tmp_path / "base", seed=1)
    evaluate(run, 0.75, later_s=5)
    report = run / "evaluation" / "report.json"
    report.write_text("{}")
    with pytest.raises(RegistryError, match="no evaluation report"):
        export_run(run)


def test_a_registered_run_is_linked_to_its_record(run: Path, tmp_path: Path) -> None:
    finish(run, tmp_path / "base", seed=1)
    location = resolve_store(TrackingConfig(), run.parent)
    client = open_client(location)
    identity = new_identity("shapes", "prefixworks", location)
    made = client.create_run(find_experiment(client, "prefixworks", location))
    (run / "tracking").mkdir()
    identity.remember(run / "tracking", made.info.run_id)
    first = register_source(run, aliases=["champion"])
    assert (first.version, first.run_id) == (1, made.info.run_id)

    # Training went on: the artifact follows its checkpoint.
    finish(run, tmp_path / "base", seed=2)
    later = (run / "prompt" / "prompt.json").stat().st_mtime + 5
    os.utime(run / "best" / "trainable.safetensors", (later, later))
    second = register_source(run)
    assert second.version == 2
    assert second.tags["prompt_digest"] != first.tags["prompt_digest"]


def test_what_cannot_be_exported_is_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="no best checkpoint yet"):
        export_run(run)
    (run / "best").mkdir()
    (run / "best" / "trainable.safetensors").write_bytes(b"torn")
    with pytest.raises(RegistryError, match="damaged"):
        export_run(run)
    with pytest.raises(RegistryError, match="neither a run folder nor a prompt artifact"):
        register_source(tmp_path)
