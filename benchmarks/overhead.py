"""What the training loop adds to a step: ours beside the bare passes of the same model and batch.

    python benchmarks/overhead.py --arch base --image-size 384 --batch 4 --prompt-length 64

`bare` is forward, backward, clipping and AdamW in plain PyTorch, on batches that are made before.
`loop` is a run as it trains: the loader reads, decodes and tokenizes in the background, DeepSpeed's
engine takes the step, every step is reported into the run's metrics.jsonl, and a watchdog looks on;
only MLflow is switched off. Both arms see the same samples in the same order. `--src-len`,
`--tgt-len` and `--padding` change nothing here: the samples are captions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import queue
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

# Started by its path, a script sees its own folder only.
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from benchmarks.measure import Build, Row, Work, measure, report
from benchmarks.pictures import write_pictures
from benchmarks.settings import Settings, build_base, parse
from benchmarks.work_folder import work_folder
from benchmarks.written_shards import write_shards
from model.checkpoint import TOKENIZER_FILE, resolve_base, save_base
from model.losses import label_smoothed_loss
from model.tuning import PrefixConfig, TuningConfig
from pipeline.config import BaseConfig, RunConfig
from pipeline.tracking.config import TrackingConfig
from pipeline.training.config import EngineConfig, TrainingConfig
from pipeline.training.data import Batch
from pipeline.training.data_config import DataConfig
from pipeline.training.inputs import open_inputs
from pipeline.training.subject import build_model
from pipeline.training.summary import TrainingResult
from pipeline.training.trainer import train
from pipeline.training.world import World

_TOKENIZER_OF = "ofa-micro"
_PICTURES = 32
_SHARDS = 4
_STEPS = 10_000
"""More than any benchmark takes."""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    settings = parse("What the training loop adds to a step.", argv)
    with work_folder(None, "overhead-benchmark") as work:
        arms = known_arms(work)
        unknown = [name for name in settings.arms if name not in arms]
        if unknown:
            sys.exit(f"no arm {unknown[0]!r}; there are: {', '.join(arms)}")
        _write_inputs(settings, work)
        chosen = {name: arms[name] for name in settings.arms or arms}
        rows = _same_arithmetic(measure(chosen, settings))
    report("Training loop", rows, settings, _comparison(rows))


def known_arms(work: Path) -> dict[str, Build]:
    """Return all arms by name; their inputs lie in a work folder."""
    return {"bare": functools.partial(_bare, work), "loop": functools.partial(_loop, work)}


def _write_inputs(settings: Settings, work: Path) -> None:
    write_pictures(work / "pictures", _PICTURES, settings.threads)
    images = [path.read_bytes() for path in sorted((work / "pictures" / "images").iterdir())]
    write_shards(work / "data", images, _SHARDS, _PICTURES)
    tokenizer = resolve_base(_TOKENIZER_OF) / TOKENIZER_FILE
    cpu = dataclasses.replace(settings, device="cpu")
    save_base(build_base(cpu), tokenizer, work / "base")


def _config(settings: Settings, work: Path) -> RunConfig:
    return RunConfig(
        name="run",
        output_dir=str(work / "runs"),
        base=BaseConfig(path=str(work / "base")),
        tuning=TuningConfig(prefix=PrefixConfig(length=settings.prompt_length)),
        data=DataConfig(train=[str(work / "data")], image_size=settings.image_size),
        training=TrainingConfig(
            max_steps=_STEPS,
            batch_size_per_rank=settings.batch,
            log_every_steps=1,
            step_timeout_s=3600.0,
        ),
        engine=EngineConfig(
            threads_per_process=settings.threads,
            precision="bf16" if settings.dtype == "bfloat16" else "fp32",
        ),
        tracking=TrackingConfig(enabled=False),
    )


def _bare(work: Path, settings: Settings) -> Work:
    """The passes alone."""
    config = _config(settings, work)
    model = build_model(config).to(settings.device).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.optimizer.lr)
    batches = _batches(config, settings)

    def run() -> None:
        batch = next(batches)
        model.zero_grad(set_to_none=True)
        with settings.autocast():
            logits_BTV = model(
                batch.source_ids_BS, batch.images_BCHW, batch.image_present_B, batch.decoder_ids_BT
            )
        loss = label_smoothed_loss(logits_BTV, batch.target_BT, epsilon=0.1)
        (loss.loss_sum / loss.sample_size).backward()
        torch.nn.utils.clip_grad_norm_(trained, config.optimizer.clip_norm)
        optimizer.step()

    return Work(run)


def _batches(config: RunConfig, settings: Settings) -> Iterator[Batch]:
    """The batches of the run's steps, made before they are asked for."""
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, loader_workers=0))
    device = torch.device(settings.device)
    alone = World(rank=0, size=1, device=torch.device("cpu"))
    # A warm-up, and a last one for the counter of operations.
    steps = settings.repeats + 2
    with contextlib.ExitStack() as stack:
        loader = open_inputs(config, settings.config, alone, stack).loader
        return iter([batch.to(device) for (batch,) in loader.steps(0, steps)])


class _Gate:
    """A hook that holds the loop after each step until the next one is asked for."""

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def take_step(self) -> None:
        """Lets the loop go on, and waits until the step is reported."""
        self._asked.put(None)
        self.wait()

    def wait(self) -> None:
        """Waits for the loop; raises what broke it."""
        error = self._done.get()
        if error is not None:
            raise error

    def broke(self, error: BaseException) -> None:
        """Tells who waits."""
        self._done.put(error)

    def on_start(self, run_dir: Path, config: RunConfig) -> None:
        """All is built."""
        self._done.put(None)
        self._asked.get()

    def on_log(self, step: int, metrics: Mapping[str, float]) -> None:
        """A step is done."""
        self._done.put(None)
        self._asked.get()

    def on_validation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Does not happen."""

    def on_end(self, result: TrainingResult) -> None:
        """Does not happen."""


def _loop(work: Path, settings: Settings) -> Work:
    """The whole of a run, one step at a time."""
    gate = _Gate()

    def run() -> None:
        try:
            train(_config(settings, work), [gate])
        except BaseException as error:
            gate.broke(error)
            raise

    threading.Thread(target=run, name="training", daemon=True).start()
    gate.wait()
    return Work(gate.take_step)


def _same_arithmetic(rows: list[Row]) -> list[Row]:
    """Both arms compute the same; the counter sees it only where it runs in its own thread."""
    by_arm = {row.arm: row for row in rows}
    if not {"bare", "loop"} <= by_arm.keys():
        return rows
    bare, loop = by_arm["bare"], by_arm["loop"]
    share = bare.ceiling_share * bare.median_s / loop.median_s
    counted = dataclasses.replace(loop, flops=bare.flops, ceiling_share=share)
    return [counted if row.arm == "loop" else row for row in rows]


def _comparison(rows: list[Row]) -> list[str]:
    by_arm = {row.arm: row.median_s for row in rows}
    if not {"bare", "loop"} <= by_arm.keys():
        return []
    more = by_arm["loop"] / by_arm["bare"] - 1
    return [f"A step of the loop takes {more:+.1%} of a bare one: times {1 + more:.3f}."]


if __name__ == "__main__":
    main()
