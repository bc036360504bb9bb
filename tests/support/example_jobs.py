"""The jobs that deploy/kubernetes shows: what its files say, as a description."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from jobs.launch.job import JobConfig, Volume

ROOT = Path(__file__).parents[2]

CPU_JOB = JobConfig(
    name="refcoco",
    recipe=str(ROOT / "jobs" / "recipes" / "train_ofa_large_refcoco.yaml"),
    # Two ranks instead of the recipe's eight, and the same global batch.
    overrides=["engine.precision=fp32", "training.gradient_accumulation=32"],
    nodes=2,
    cpus_per_process=16,
    memory_gb=64,
    image="prefixworks:cpu",
    environment={"MLFLOW_TRACKING_URI": "http://mlflow:5000"},
    volumes=[
        Volume(source="pvc:data", mount="/home/prefixworks/data"),
        Volume(source="pvc:runs", mount="/home/prefixworks/runs"),
    ],
)
"""On two nodes without accelerators."""

GPU_JOB = replace(
    CPU_JOB,
    overrides=[],
    accelerators_per_node=4,
    cpus_per_process=8,
    memory_gb=128,
    image="prefixworks:gpu",
)
"""On two nodes with four GPUs each."""
