"""What the training loop adds to a step: ours beside the bare passes of the same model and batch.

    python benchmarks/overhead.py --arch base --image-size 384 --batch 4 --prompt-length 64

`bare` is forward, backward, clipping and AdamW in plain PyTorch, on batches that are made before.
`loop` is a run as it trains: the loader reads, decodes and tokenizes in the background, DeepSpeed's
engine takes the step, every step is reported into the run's metrics.jsonl, and a watchdog looks on;
only MLflow is switched off. Both see the same samples in the same order, by turns in one process.
`--src-len`, `--tgt-len` and `--padding` change nothing here: the samples are captions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

# Started by its path, a script sees its own folder only.
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from rich.console import Console
from rich.table import Table

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
_WARM_UP = 3
"""Steps of the loop that are not measured."""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    settings = parse("What the training loop adds to a step.", argv)
    with work_folder(None, "overhead-benchmark") as work:
        _write_inputs(settings, work)
        config = _config(settings, work)
        both = _BareBetween(_bare(config, settings), settings.repeats, settings.device)
        with contextlib.suppress(_Enough):
            train(config, [both])
    rows = [_row("bare", both.bare, settings), _row("loop", both.loop, settings)]
    # Of each round by itself, since the machine may change its pace between them.
    shares = [ours.wall_s / bare.wall_s for ours, bare in zip(both.loop, both.bare, strict=True)]
    _report(rows, statistics.median(shares) - 1, settings)


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


def _bare(config: RunConfig, settings: Settings) -> Callable[[], None]:
    """The passes alone."""
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

    return run


def _batches(config: RunConfig, settings: Settings) -> Iterator[Batch]:
    """The batches of the run's steps, made before they are asked for."""
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, loader_workers=0))
    device = torch.device(settings.device)
    alone = World(rank=0, size=1, device=torch.device("cpu"))
    steps = settings.repeats + _WARM_UP + 1
    with contextlib.ExitStack() as stack:
        loader = open_inputs(config, settings.config, alone, stack).loader
        return iter([batch.to(device) for (batch,) in loader.steps(0, steps)])


class _Enough(Exception):
    """Ends the run: all rounds are measured."""


class _BareBetween:
    """A hook that takes a bare step after each step of the loop, and times both.

    Both run in the same thread of the same process, by turns: what disturbs the machine disturbs
    both, and neither has another team of threads or warmer caches.
    """

    def __init__(self, bare: Callable[[], None], rounds: int, device: str) -> None:
        self.loop: list[Cost] = []
        self.bare: list[Cost] = []
        self._bare, self._rounds, self._device = bare, rounds, device

    def on_start(self, run_dir: Path, config: RunConfig) -> None:
        """All is built."""
        self._bare()
        self._began = _clock(self._device)

    def on_log(self, step: int, metrics: Mapping[str, float]) -> None:
        """A step is done."""
        done = _clock(self._device)
        self._bare()
        bare_done = _clock(self._device)
        # The first steps fill the loader's queue and touch memory for the first time.
        if step > _WARM_UP:
            self.loop.append(Cost(done.wall_s - self._began.wall_s, done.cpu_s - self._began.cpu_s))
            self.bare.append(Cost(bare_done.wall_s - done.wall_s, bare_done.cpu_s - done.cpu_s))
        if len(self.loop) == self._rounds:
            raise _Enough
        self._began = bare_done

    def on_validation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Does not happen."""

    def on_end(self, result: TrainingResult) -> None:
        """Does not happen."""


class Cost(NamedTuple):
    """Seconds of the clock, and of all threads together."""

    wall_s: float
    cpu_s: float


def _clock(device: str) -> Cost:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return Cost(time.perf_counter(), time.process_time())


def _row(arm: str, costs: Sequence[Cost], settings: Settings) -> dict[str, object]:
    return {
        **{"arm": arm, "arch": settings.arch, "image_size": settings.image_size},
        **{"batch": settings.batch, "prompt_length": settings.prompt_length},
        "median_s": statistics.median(cost.wall_s for cost in costs),
        "cpu_s": statistics.median(cost.cpu_s for cost in costs),
        "samples_s": [round(cost.wall_s, 4) for cost in costs],
    }


def _report(rows: list[dict[str, object]], more: float, settings: Settings) -> None:
    table = Table(title=f"Training loop: {settings}", title_justify="left")
    table.add_column("arm", no_wrap=True)
    for heading in ("median s", "CPU s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(str(row["arm"]), f"{row['median_s']:.3f}", f"{row['cpu_s']:.3f}")
    console = Console(width=None if Console().is_terminal else 160)
    console.print(table)
    console.print(f"A step of the loop takes {more:+.1%} of a bare one (median over the rounds).")
    if settings.json is not None:
        settings.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
