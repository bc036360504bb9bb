"""A short run as the recording hook sees it, without the training."""

from __future__ import annotations

import json
from pathlib import Path

from mlflow.tracking import MlflowClient

from pipeline.config import RunConfig
from pipeline.tracking.config import TrackingConfig
from pipeline.tracking.delivery import open_client
from pipeline.tracking.identity import read_identity
from pipeline.tracking.mlflow import MlflowHook
from pipeline.training.data_config import DataConfig
from pipeline.training.hooks import MetricsFile
from pipeline.training.summary import TrainingResult
from tests.support.mlflow_store import make_store
from tests.support.prepared import manifest_folder

QUICK = {"delivery_s": 0.05, "retry_s": 0.2, "close_timeout_s": 30.0, "system_metrics_s": 0.0}


def run_config(folder: Path, name: str = "shapes", **tracking: object) -> RunConfig:
    """The configuration of a run below folder, whose data are a manifest and nothing else."""
    for role in ("train", "held_out"):
        if not (folder / role).exists():
            manifest_folder(folder / role, role)
    if "uri" not in tracking and not (folder / "runs" / "mlflow.db").exists():
        make_store(folder / "runs")
    return RunConfig(
        name=name,
        output_dir=str(folder / "runs"),
        data=DataConfig(train=[str(folder / "train")], validation=[str(folder / "held_out")]),
        tracking=TrackingConfig(**{**QUICK, **tracking}),  # type: ignore[arg-type]
    )


def run_dir_of(config: RunConfig) -> Path:
    return Path(config.output_dir) / config.name


def begin(config: RunConfig, resumed_step: int = 0) -> tuple[MlflowHook, MetricsFile]:
    """Starts the record of a run, or continues it."""
    run_dir = run_dir_of(config)
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text("name: shapes\n")
    hook, file = MlflowHook(), MetricsFile(resumed_step)
    file.on_start(run_dir, config)
    hook.on_start(run_dir, config)
    return hook, file


def log_steps(hooks: tuple[MlflowHook, MetricsFile], steps: range) -> None:
    for step in steps:
        metrics = {
            "train/loss": 1.0 / (step + 1),
            "train/lr": 0.001,
            "train/data_wait_share": 0.1,
        }
        for hook in reversed(hooks):
            hook.on_log(step, metrics)


def validate(hooks: tuple[MlflowHook, MetricsFile], step: int) -> None:
    for hook in reversed(hooks):
        hook.on_validation(step, {"validation/loss": 0.7, "vqa/accuracy": 0.5})


def finish(hook: MlflowHook, config: RunConfig, step: int) -> None:
    hook.on_end(
        TrainingResult(
            output_dir=run_dir_of(config),
            best_metrics={"vqa/accuracy": 0.5},
            final_step=step,
            trainable_parameters=8,
            base_parameters=800,
            fingerprint_before="sha256:aa",
            fingerprint_after="sha256:aa",
            seconds=2.0,
        )
    )


def record_run(config: RunConfig, steps: range, *, resumed_step: int = 0) -> Path:
    """Records a run of some steps with a validation after the last, from start to end."""
    hooks = begin(config, resumed_step)
    log_steps(hooks, steps)
    validate(hooks, steps[-1])
    finish(hooks[0], config, steps[-1])
    return run_dir_of(config)


def keep_checkpoint(run_dir: Path, step: int, *, best: bool = False) -> Path:
    """Puts a checkpoint's outer shape into a run folder."""
    place = run_dir / "best" if best else run_dir / "checkpoints" / f"step-{step:06d}"
    place.mkdir(parents=True, exist_ok=True)
    (place / "state.json").write_text(json.dumps({"step": step}))
    return place


def client_and_run(run_dir: Path) -> tuple[MlflowClient, str]:
    """A client of a run's store, and the id of its MLflow run."""
    identity = read_identity(run_dir)
    assert identity is not None
    assert identity.run_id is not None
    return open_client(identity.location), identity.run_id


def steps_of(client: MlflowClient, run_id: str, name: str = "train/loss") -> list[int]:
    """The steps of each point of a metric, in order; a step told twice is there twice."""
    return sorted(metric.step for metric in client.get_metric_history(run_id, name))
