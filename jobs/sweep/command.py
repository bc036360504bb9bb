"""`prefixworks sweep`: train variants of a run, and say which is best.

prefixworks sweep --config=sweep.yaml --dry-run
prefixworks sweep --config=sweep.yaml
prefixworks sweep --config=sweep.yaml --resume
prefixworks sweep show runs/lr
"""

from __future__ import annotations

import argparse
import signal
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from jobs.sweep.config import SweepConfig
from pipeline.config_reader import load, parse
from pipeline.errors import EXIT_INTERRUPTED, ConfigError, TrainingError

if TYPE_CHECKING:
    from jobs.sweep.results import Row
    from jobs.sweep.trials import Sweep, Trial

_RESUME, _TRIAL = "--resume", "--trial"
_EPILOG = """examples:
  prefixworks sweep --config=sweep.yaml --dry-run
  prefixworks sweep --config=sweep.yaml --concurrency=2
  prefixworks sweep --config=sweep.yaml --resume
  prefixworks sweep --config=sweep.yaml --trial=3 --resume
  prefixworks sweep show runs/lr

--resume continues a sweep: finished trials are kept, others go on from their checkpoints. --trial
runs one trial, by its number, in this process, as a task of an array job does. A sweep that gets
SIGTERM, SIGUSR1 or Ctrl-C has its trials save their state, and exits with status 75.
"""


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit status."""
    if argv and argv[0] == "show":
        return _show(argv[1:])
    words, resume, number = _split(argv)
    config, dry_run = parse(
        SweepConfig,
        words,
        prog="prefixworks sweep",
        description="Train variants of a run with Ray Tune, and say which is best.",
        epilog=_EPILOG,
    )
    # Here, because torch takes seconds to import and `--help` must not wait.
    from jobs.sweep.folder import claim
    from jobs.sweep.trials import plan

    sweep = plan(config)
    _check_inputs(sweep)
    trial = None if number is None else _numbered(sweep, number)
    if dry_run:
        _print_plan(sweep)
        return 0
    claim(sweep, resume=resume)
    return _run_all(sweep) if trial is None else _run_one(sweep, trial)


def _run_all(sweep: Sweep) -> int:
    from jobs.sweep.folder import held
    from jobs.sweep.record import recorded
    from jobs.sweep.results import print_rows, rows, write_result
    from jobs.sweep.tuner import run_trials

    asked = False
    with held(sweep), recorded(sweep) as record:
        over = {row.trial for row in rows(sweep) if row.over}
        todo = [trial for trial in sweep.trials if trial.name not in over]
        if over:
            print(f"{sweep.folder}: {len(over)} of {len(sweep.trials)} trials are over already")
        if todo:
            asked = run_trials(sweep, todo)
        found = write_result(sweep)
        record.tell(found, alone=True)
    print_rows(sweep, found)
    return _status(sweep, found, asked=asked)


def _status(sweep: Sweep, found: list[Row], *, asked: bool) -> int:
    if asked and any(row.state in ("waiting", "interrupted") for row in found):
        raise TrainingError(
            "asked to stop; the trials have saved their state, and --resume goes on",
            exit_code=EXIT_INTERRUPTED,
        )
    broken = [row for row in found if not row.over]
    if broken:
        raise TrainingError(
            f"{len(broken)} of {len(found)} trials did not finish; the first of them,"
            f" {broken[0].trial}: {broken[0].error or broken[0].state}; --resume tries again"
        )
    print(
        f"{sweep.folder}: best is {found[0].trial}; prefixworks registry register"
        f" {sweep.folder / found[0].trial}"
    )
    return 0


def _run_one(sweep: Sweep, trial: Trial) -> int:
    """Runs one trial here; signals reach it through this process."""
    from jobs.sweep.record import recorded
    from jobs.sweep.results import write_result
    from jobs.sweep.trial_run import TrialRun

    asked = False
    run: TrialRun | None = None

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        if run is not None:
            run.ask_to_stop()

    with recorded(sweep) as record:
        try:
            for number in (signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, ask)
            run = TrialRun(trial, sweep.metric)
            if asked:
                run.ask_to_stop()
            while (report := run.next_report()) is not None:
                print(f"{trial.name}: step {report.step}, {sweep.metric.name} {report.value:.4f}")
        finally:
            found = write_result(sweep)
            record.tell(found, alone=False)
    if any(row.trial == trial.name and row.over for row in found):
        return 0
    raise TrainingError(
        f"{trial.name} was asked to stop and has saved its state", exit_code=EXIT_INTERRUPTED
    )


def _split(argv: Sequence[str]) -> tuple[list[str], bool, int | None]:
    """The arguments that are settings, whether to resume, and the one trial that is to be run.

    Raises:
        ConfigError: there is no such number.
    """
    words = [word for word in argv if word != _RESUME]
    resume, number = len(words) < len(argv), None
    for word in [word for word in words if word.partition("=")[0] == _TRIAL]:
        words.remove(word)
        text = word.partition("=")[2]
        if not text.isdigit() or number is not None:
            raise ConfigError(f"{word}: must be given once, as {_TRIAL}=NUMBER")
        number = int(text)
    return words, resume, number


def _numbered(sweep: Sweep, number: int) -> Trial:
    if sweep.config.scheduler == "asha":
        raise ConfigError(
            f"{_TRIAL}={number}: scheduler = asha compares trials while they run, so one cannot run"
            " alone; leave --trial out, or take scheduler = none"
        )
    if number >= len(sweep.trials):
        raise ConfigError(f"{_TRIAL}={number}: there are trials 0 to {len(sweep.trials) - 1}")
    return sweep.trials[number]


def _check_inputs(sweep: Sweep) -> None:
    """Looks for bases and data once, before every trial does."""
    from jobs.train import check_inputs

    seen = set[str]()
    for trial in sweep.trials:
        run = trial.run
        key = repr((run.base.path, run.data))
        if key not in seen:
            seen.add(key)
            check_inputs(run)


def _print_plan(sweep: Sweep) -> None:
    from jobs.sweep.results import print_rows, rows

    print_rows(sweep, sorted(rows(sweep), key=lambda row: row.trial))
    config, base = sweep.config, sweep.base
    better = "smaller" if sweep.metric.mode == "min" else "larger"
    print(
        f"would train {len(sweep.trials)} trials in {sweep.folder}, {config.concurrency} at a time,"
        f" each on {max(trial.cpus for trial in sweep.trials)} cores and"
        f" {config.resources.gpus} GPUs; all share {base.tuning.method} on {base.base.path},"
        f" learning from {', '.join(base.data.train)}, but for what the table says;"
        f" {better} {sweep.metric.name} is better, scheduler {config.scheduler}"
    )


def _show(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="prefixworks sweep show", description="Print how the trials of a sweep stand."
    )
    parser.add_argument("folder", type=Path, help="folder of the sweep, such as runs/lr")
    folder: Path = parser.parse_args(argv).folder
    from jobs.sweep.folder import CONFIG
    from jobs.sweep.results import print_rows, rows
    from jobs.sweep.trials import plan

    if not (folder / CONFIG).is_file():
        raise ConfigError(f"FOLDER = {str(folder)!r}: is not the folder of a sweep")
    sweep = plan(load(SweepConfig, [folder / CONFIG]))
    print_rows(sweep, rows(sweep))
    return 0
