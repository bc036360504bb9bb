"""`prefixworks model verify`: whether this machine computes what the reference computed.

prefixworks model verify --fixtures tests/parity/fixtures/ofa_micro
prefixworks model verify --fixtures tests/parity/fixtures/ofa_micro --device cuda --dtype bf16
prefixworks model verify --fixtures tests/parity/fixtures/ofa_micro --json
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from jobs.cli import run_stage
from model.verify import DTYPES, Comparison, Report, read_fixtures, verify
from pipeline.errors import ConfigError

_DESCRIPTION = """\
Recompute the recorded cases of a fixture folder and compare: activations, losses, gradients, beam
search and scores of answers. Run it after a new GPU, driver or torch, before trusting a training.

A row of the table is one comparison:
  CASE       what was computed, as the folder calls it
  COMPARED   which of its outputs
  MEASURE    exact: elements that differ; activation, logits, score: largest absolute difference;
             loss: largest relative difference; gradient: relative difference in norm
  ERROR      the largest error at the positions that count, padding left out
  TOLERANCE  what rounding may explain on any device, in this dtype
  RESULT     ok or MISS

Below fp32 the model runs under autocast, as training does, and the scores of recorded hypotheses
are compared instead of searches. In fp32, TF32 is switched off."""
_EPILOG = """\
exit status: 0 all within tolerance, 1 a MISS or a folder that can't be read, 2 a bad argument

examples:
  prefixworks model verify --fixtures tests/parity/fixtures/ofa_micro
  prefixworks model verify --fixtures tests/parity/fixtures/ofa_micro --device cuda --dtype bf16"""


def build_parser() -> argparse.ArgumentParser:
    """The command line of `prefixworks model verify`."""
    parser = argparse.ArgumentParser(
        prog="prefixworks model verify",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--fixtures", type=Path, required=True, metavar="DIR", help="folder of recorded cases"
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where to compute (default cpu)"
    )
    parser.add_argument(
        "--dtype", choices=tuple(DTYPES), default="fp32", help="precision (default fp32)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the command: 0 where all is within tolerance, 1 after a miss.

    Raises:
        ConfigError: the device isn't there.
        CheckpointError: the folder is missing, damaged or not understood.
    """
    arguments = build_parser().parse_args(argv)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device=cuda: torch finds no CUDA device here; `doctor` says more")
    fixtures = read_fixtures(arguments.fixtures)
    report = verify(fixtures, device=arguments.device, dtype=arguments.dtype)
    machine = {"torch": torch.__version__, "device": arguments.device, **_device(arguments.device)}
    if arguments.json:
        setting = {"fixtures": str(arguments.fixtures), "dtype": arguments.dtype, **machine}
        print(json.dumps({**setting, **_plain(report)}, indent=2))
    else:
        print(", ".join(f"{name} {value}" for name, value in machine.items()))
        _print_table(report)
        print(_summary(report, arguments.device, arguments.dtype))
    return 1 if report.missed else 0


def _device(device: str) -> dict[str, str]:
    """What else may explain a difference: the processor, or the GPU with its CUDA."""
    if device == "cpu":
        return {"processor": torch.backends.cpu.get_cpu_capability()}
    return {"gpu": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda)}


def _plain(report: Report) -> dict[str, object]:
    return {
        "ok": not report.missed,
        "comparisons": [
            {
                "case": row.case,
                "compared": row.what,
                "measure": row.measure,
                # JSON knows neither inf nor nan.
                "error": row.error if math.isfinite(row.error) else None,
                "tolerance": row.tolerance,
                "result": _result(row),
            }
            for row in report.comparisons
        ],
        "skipped": [{"case": each.case, "reason": each.reason} for each in report.skipped],
    }


def _print_table(report: Report) -> None:
    rows = [("CASE", "COMPARED", "MEASURE", "ERROR", "TOLERANCE", "RESULT")]
    rows += [
        (row.case, row.what, row.measure, *_numbers(row), _result(row))
        for row in report.comparisons
    ]
    rows += [(e.case, "-", "-", "-", "-", f"skipped: {e.reason}") for e in report.skipped]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def _numbers(row: Comparison) -> tuple[str, str]:
    if row.measure == "exact":
        return f"{row.error:.0f}", "0"
    return f"{row.error:.1e}", f"{row.tolerance:.1e}"


def _result(row: Comparison) -> str:
    return "ok" if row.ok else "MISS"


def _summary(report: Report, device: str, dtype: str) -> str:
    missed = report.missed
    text = f"{len(report.comparisons)} compared on {device} in {dtype}: "
    text += f"{len(missed)} missed" if missed else "all within tolerance"
    if missed:
        text += f" in {', '.join(dict.fromkeys(row.case for row in missed))}"
    for reason, count in report.skipped_by_reason().items():
        text += f"; {count} skipped: {reason}"
    return text


if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
