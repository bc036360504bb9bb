"""What shortens prompt tuning: steps and seconds to 95% of the plain recipe's final score.

    python benchmarks/cost_to_quality.py --work study --json study.json

Every arm is the demo's recipe with one thing changed, on the same data of the embedded world and
with the same schedule. Finished arms are kept, and not run again where a study was stopped. Steps
do not depend on what else the machine does; of the two kinds of seconds those of the CPU do so
least.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Started by its path, a script sees its own folder only.
sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.console import Console
from rich.table import Table

from pipeline.training.checkpoint import write_json_whole

ROOT = Path(__file__).parents[1]
_METRICS = {"vqa": "vqa/accuracy", "grounding": "grounding/acc_at_0.5"}
PLAIN = "plain"
DONOR = "donor"
"""Trained on the other task first; not an arm by itself."""
_ACTIVATIONS = "--initial.values=activations"
ARMS: dict[str, tuple[str, ...]] = {
    PLAIN: (),
    "init_std 1": ("--tuning.prefix.init_std=1.0",),
    "activations": (_ACTIVATIONS,),
    "twice the rate": ("--optimizer.lr=0.2",),
    "init_std 1, twice the rate": ("--tuning.prefix.init_std=1.0", "--optimizer.lr=0.2"),
    "activations, twice the rate": (_ACTIVATIONS, "--optimizer.lr=0.2"),
    "four times the rate": ("--optimizer.lr=0.4",),
    "activations, four times the rate": (_ACTIVATIONS, "--optimizer.lr=0.4"),
    "other task's prompt": ("--initial.values=prompt", "--initial.prompt={donor}"),
    "projection": ("--tuning.prefix.projection_dim=192", "--optimizer.lr=0.01"),
    "lower layers faster": ("--tuning.prefix.layer_lr_decay=1.5",),
    "lower layers slower": ("--tuning.prefix.layer_lr_decay=0.67",),
}
"""What each arm says differently on the command line."""
_SHARE = 0.95
_ONE_DONOR = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Size of the study."""

    work: Path
    task: str
    base: str
    scenes: int
    steps: int
    batch: int
    every: int
    samples: int

    @property
    def prepared(self) -> Path:
        """Folder of the prepared data sets."""
        return self.work / "data" / "prepared"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One finished arm with one seed; None where the target was not reached."""

    arm: str
    seed: int
    steps_to_95: int | None
    seconds_to_95: float | None
    """Seconds of the steps up to there, on the machine as busy as it was."""
    cpu_s_to_95: float | None
    cpu_s_per_step: float
    steps_to_nll: int | None
    """Steps to the plain recipe's final negative log-likelihood, which is less noisy."""
    final_score: float
    final_nll: float
    trainable: int


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing, then print and write what there is."""
    values = vars(_parser().parse_args(argv))
    arms, seeds, file, parallel = (values.pop(n) for n in ("arms", "seeds", "json", "parallel"))
    settings = Settings(**values)
    unknown = [arm for arm in arms if arm not in ARMS]
    if unknown:
        sys.exit(f"no arm {unknown[0]!r}; there are: {', '.join(ARMS)}")
    _prepare(settings)
    wanted = [(arm, seed) for seed in seeds for arm in arms]
    with ThreadPoolExecutor(parallel) as pool:
        for _ in pool.map(lambda each: _run(settings, *each), wanted):
            _report(settings, wanted, file)
    _print(_report(settings, wanted, file), settings)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Steps and seconds to 95% of the plain recipe's final score.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for data and runs, kept")
    parser.add_argument("--task", choices=_METRICS, default="vqa")
    parser.add_argument("--base", default="ofa-micro", help="name or folder of the base")
    for flag, default, said in (
        ("scenes", 2000, "scenes of training data"),
        ("steps", 100, "optimizer steps of a run"),
        ("batch", 32, "samples of a step"),
        ("every", 10, "steps between validations"),
        ("samples", 128, "held-out samples of a validation"),
        ("parallel", 1, "runs at a time, each with one thread"),
    ):
        parser.add_argument(f"--{flag}", type=int, default=default, help=said)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), help="only these arms")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows there")
    return parser


def _prepare(settings: Settings) -> None:
    """Draws and prepares the data, where they are not there yet."""
    raw = "data/raw/downstream"
    if not (settings.work / raw).is_dir():
        settings.work.mkdir(parents=True, exist_ok=True)
        held_out = max(1, settings.samples // 2)
        counts = zip(("train", "val", "test"), (settings.scenes, held_out, 1), strict=True)
        scenes = [f"--scenes.{split}={count}" for split, count in counts]
        _command(settings, "synthesize", f"--output={raw}", "--domain=downstream", *scenes)
    # It finds finished shards by itself.
    recipe = ROOT / "jobs" / "recipes" / "prepare_downstream.yaml"
    _command(settings, "prepare", f"--config={recipe}", "--workers=1")


def _run(settings: Settings, arm: str, seed: int) -> None:
    """Trains an arm to its end, where that was not done before."""
    if any("{donor}" in word for word in ARMS.get(arm, ())):
        with _ONE_DONOR:
            _run(settings, DONOR, 0)
    name = f"{arm.replace(' ', '-')}-{seed}".replace(",", "").replace("'", "")
    curve = _curve(settings, arm, seed)
    if curve.is_file():
        return
    # A run that was stopped is begun again, since what it had cost is not known.
    shutil.rmtree(settings.work / "runs" / name, ignore_errors=True)
    curve.parent.mkdir(exist_ok=True)
    task = settings.task if arm != DONOR else next(t for t in _METRICS if t != settings.task)
    different = [word.format(donor=_donor(settings)) for word in ARMS.get(arm, ())]
    recipe = ROOT / "jobs" / "recipes" / f"train_demo_{task}.yaml"
    words = [f"--config={recipe}", f"--name={name}", f"--seed={seed}", *_sizes(settings, task)]
    script = str(ROOT / "benchmarks" / "quality_arm.py")
    _checked([sys.executable, script, str(curve.absolute()), *words, *different], settings)
    if arm == DONOR:
        # Here, because it brings torch and MLflow with it.
        from pipeline.registry.export import export_run

        export_run(settings.work / "runs" / name, _donor(settings))
    print(f"{arm}, seed {seed}: done", flush=True)


def _curve(settings: Settings, arm: str, seed: int) -> Path:
    sizes = f"{settings.task}-{settings.steps}x{settings.batch}"
    return settings.work / "curves" / f"{sizes} {arm} {seed}.json"


def _donor(settings: Settings) -> Path:
    return settings.work.absolute() / "donor"


def _sizes(settings: Settings, task: str) -> list[str]:
    prepared = settings.prepared.absolute()
    return [
        # Whole paths: the donor's export reads their manifests from elsewhere.
        f"--data.train=[{prepared / 'downstream_train'}]",
        f"--data.validation=[{prepared / 'downstream_val'}]",
        f"--base.path={settings.base}",
        f"--training.max_steps={settings.steps}",
        f"--training.batch_size_per_rank={settings.batch}",
        f"--training.validate_every_steps={settings.every}",
        f"--training.log_every_steps={settings.every}",
        "--training.save_every_steps=null",
        f"--training.validation_samples={settings.samples}",
        f"--training.best_metric={_METRICS[task]}",
        "--engine.processes=1",
        "--engine.threads_per_process=1",
        "--tracking.enabled=false",
    ]


def _command(settings: Settings, *words: str) -> None:
    _checked([sys.executable, "-m", "jobs.cli", *words], settings)


def _checked(command: list[str], settings: Settings) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        command, cwd=settings.work, env=env, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")


def _report(settings: Settings, wanted: Sequence[tuple[str, int]], file: Path | None) -> list[Row]:
    """The rows of what is finished, written to the file if there is one."""
    curves = {each: _read(_curve(settings, *each)) for each in wanted}
    found = {each: curve for each, curve in curves.items() if curve is not None}
    finals = [curve["points"][-1] for (arm, _), curve in found.items() if arm == PLAIN]
    if not finals:
        return []
    score = _SHARE * statistics.mean(point["score"] for point in finals)
    nll = statistics.mean(point["nll"] for point in finals)
    rows = [_row(arm, seed, curve, score, nll) for (arm, seed), curve in found.items()]
    if file is not None:
        sizes = {name: str(value) for name, value in asdict(settings).items() if name != "work"}
        record = {"settings": sizes, "target_score": score, "target_nll": nll}
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json_whole(file, {**record, "rows": [asdict(row) for row in rows]})
    return rows


def _read(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    curve: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return curve


def _row(arm: str, seed: int, curve: dict[str, Any], score: float, nll: float) -> Row:
    points = curve["points"]
    reached = next((point for point in points if point["score"] >= score), None)
    learnt = next((point for point in points if point["nll"] <= nll), None)
    last = points[-1]
    return Row(
        arm=arm,
        seed=seed,
        steps_to_95=reached and reached["step"],
        seconds_to_95=reached and round(reached["wall_s"], 1),
        cpu_s_to_95=reached and round(reached["cpu_s"], 1),
        cpu_s_per_step=round(last["cpu_s"] / last["step"], 4),
        steps_to_nll=learnt and learnt["step"],
        final_score=last["score"],
        final_nll=last["nll"],
        trainable=curve["trainable"],
    )


def _print(rows: Sequence[Row], settings: Settings) -> None:
    title = f"{settings.task}, {settings.steps} steps of {settings.batch}; a line a seed"
    table = Table(title=title)
    for heading in ("arm", "seed", "steps to 95%", "CPU s to 95%", "CPU s a step"):
        table.add_column(heading)
    for heading in ("steps to plain's NLL", "final score", "final NLL"):
        table.add_column(heading)
    for row in rows:
        cells = (row.arm, row.seed, row.steps_to_95, row.cpu_s_to_95, row.cpu_s_per_step)
        numbers = (row.steps_to_nll, f"{row.final_score:.3f}", f"{row.final_nll:.3f}")
        table.add_row(*("never" if cell is None else str(cell) for cell in cells + numbers))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
