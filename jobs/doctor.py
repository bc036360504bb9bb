"""`prefixworks doctor`: check this machine and say what to do about each failure.

prefixworks doctor
prefixworks doctor --base=bases/ofa_large --output-dir=/data/runs
prefixworks doctor --json

Exits with 1 when a check fails; a warning is something that works, but slowly or not for long.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

import psutil
import torch
from packaging.requirements import Requirement
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.errors import ConfigError

GIB = 1024**3
_COLORS = {"ok": "green", "warning": "yellow", "failed": "red"}
_SHM_BYTES_PER_RANK = 80 * 1024**2
"""DeepSpeed's shared-memory all-reduce takes about 69 MB a rank, and Ray's store more."""


@dataclass(frozen=True)
class Check:
    """What one look at the machine found."""

    name: str
    status: Literal["ok", "warning", "failed"]
    found: str
    advice: str = ""
    """What to do; empty where nothing needs to be done."""


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="prefixworks doctor",
        description="Check this machine and say what to do about each failure.",
    )
    parser.add_argument("--base", default="ofa-micro", help="base to load (default %(default)s)")
    parser.add_argument(
        "--output-dir", type=Path, default=Path("runs"), help="folder of the runs (default runs)"
    )
    parser.add_argument(
        "--skip", action="append", default=[], metavar="CHECK", help="leave a check out, by name"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    checks = examine(args.base, args.output_dir, args.skip)
    if args.json:
        print(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        _print_table(checks)
    return 1 if any(check.status == "failed" for check in checks) else 0


def examine(base: str, output_dir: Path, skip: Collection[str] = ()) -> list[Check]:
    """Makes the checks, none of which changes anything.

    Args:
        base: Name or folder of the base that should load.
        output_dir: Folder that runs will be written to; it may not exist yet.
        skip: Names of checks to leave out.

    Raises:
        ConfigError: a name in skip is no check.
    """
    steps: dict[str, Callable[[], Check]] = {
        "python": check_python,
        "libraries": check_libraries,
        "processors": check_processors,
        "memory": check_memory,
        "shared memory": check_shared_memory,
        "disk": lambda: check_disk(output_dir),
        "writing": lambda: check_writing(output_dir),
        "compiler": check_compiler,
        "GPUs": check_gpus,
        "base": lambda: check_base(base),
    }
    unknown = set(skip) - set(steps)
    if unknown:
        raise ConfigError(f"--skip={min(unknown)}: no such check; checks: {', '.join(steps)}")
    return [step() for name, step in steps.items() if name not in skip]


def check_python() -> Check:
    """The interpreter and the system that it runs on."""
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if platform.system() != "Linux":
        return Check("python", "warning", found, "only Linux is tested; use a container")
    return Check("python", "ok", found)


def check_libraries() -> Check:
    """The installed versions against the ranges that this package declares."""
    wrong = []
    shown = []
    for line in requires("prefixworks") or []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(f"{requirement.name} {installed} is not {requirement.specifier}")
        if requirement.name in ("torch", "deepspeed", "ray", "mlflow"):
            shown.append(f"{requirement.name} {installed}")
    if wrong:
        return Check("libraries", "failed", "; ".join(wrong), "run `make install`")
    return Check("libraries", "ok", ", ".join(shown))


def check_processors() -> Check:
    """Cores that this process may use, which a container or scheduler can limit."""
    usable, present = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    found = f"{usable} of {present} cores usable, {torch.get_num_threads()} torch threads"
    if usable < 2:
        return Check("processors", "warning", found, "ask for 2 or more: the demo trains two ranks")
    return Check("processors", "ok", found)


def check_memory() -> Check:
    """Memory that is free now."""
    memory = psutil.virtual_memory()
    found = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB available"
    if memory.available < 3 * GIB:
        advice = "free some: Ray, two ranks and MLflow take about 3 GiB together"
        return Check("memory", "warning", found, advice)
    return Check("memory", "ok", found)


def check_shared_memory(place: Path = Path("/dev/shm")) -> Check:
    """Shared memory, and what killed runs left in it."""
    if not place.is_dir():
        return Check("shared memory", "failed", f"{place} is missing", f"mount a tmpfs on {place}")
    free = shutil.disk_usage(place).free
    left = list(place.glob("deepspeed_allreduce_buffer*"))
    found = f"{free / GIB:.2f} GiB free in {place}"
    if free < 2 * _SHM_BYTES_PER_RANK:
        advice = "give the container more, as in `docker run --shm-size=2g`"
        return Check("shared memory", "failed", found, advice)
    if left:
        size = sum(path.stat().st_size for path in left) / GIB
        found += f"; {len(left)} DeepSpeed buffers of {size:.2f} GiB"
        advice = f"if no training runs here, remove {place}/deepspeed_allreduce_buffer*"
        return Check("shared memory", "warning", found, advice)
    return Check("shared memory", "ok", found)


def check_disk(folder: Path) -> Check:
    """Space where runs are written."""
    place = _existing(folder)
    free = shutil.disk_usage(place).free
    found = f"{free / GIB:.1f} GiB free for {folder}"
    if free < GIB:
        return Check("disk", "failed", found, "free 1 GiB or choose another --output-dir")
    if free < 10 * GIB:
        return Check("disk", "warning", found, "checkpoints of large bases need more than 10 GiB")
    return Check("disk", "ok", found)


def check_writing(folder: Path) -> Check:
    """Whether a file can be written, synced and renamed there, as every output is."""
    place = _existing(folder)
    start = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=place) as scratch:
            new = Path(scratch) / "new"
            with new.open("wb") as stream:
                stream.write(bytes(1024**2))
                stream.flush()
                os.fsync(stream.fileno())
            new.replace(Path(scratch) / "final")
    except OSError as error:
        found = f"{place}: {error.strerror}"
        return Check("writing", "failed", found, "give this user the folder, or choose another")
    spent = time.monotonic() - start
    found = f"1 MiB written, synced and renamed in {spent * 1000:.0f} ms in {place}"
    if spent > 2:
        return Check("writing", "warning", found, "a local disk makes checkpoints faster")
    return Check("writing", "ok", found)


def check_compiler() -> Check:
    """The C++ compiler and ninja, with which DeepSpeed builds its operators at the first run."""
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    beside = Path(sys.executable).parent
    ninja = shutil.which("ninja") or shutil.which("ninja", path=str(beside))
    missing = [name for name, at in (("a C++ compiler", compiler), ("ninja", ninja)) if not at]
    if missing:
        advice = "install g++ and ninja, or use a plain torch optimizer"
        return Check("compiler", "warning", f"no {' and no '.join(missing)}", advice)
    return Check("compiler", "ok", f"{compiler}, {ninja}")


def check_gpus() -> Check:
    """The GPUs that torch sees."""
    if not torch.cuda.is_available():
        if Path("/proc/driver/nvidia/version").exists():
            advice = "the driver is there but torch has no CUDA: install a CUDA build of torch"
            return Check("GPUs", "warning", "a driver, but none that torch can use", advice)
        return Check("GPUs", "ok", "none; everything runs on the CPU")
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    free, total = torch.cuda.mem_get_info(0)
    found = f"{', '.join(names)}; {free / GIB:.1f} of {total / GIB:.1f} GiB free on the first"
    if free < total / 2:
        return Check("GPUs", "warning", found, "another process uses it; see `nvidia-smi`")
    return Check("GPUs", "ok", found)


def check_base(base: str) -> Check:
    """Whether the base loads, and which one it is."""
    from model.checkpoint import fingerprint, load_base
    from model.errors import CheckpointError

    start = time.monotonic()
    try:
        model = load_base(base)
    except CheckpointError as error:
        advice = "give --base a packaged name or a folder as `docs/reference/base-folder.md` says"
        return Check("base", "failed", str(error), advice)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    return Check(
        "base",
        "ok",
        f"{model.config.name}: {millions:.1f} M parameters, {fingerprint(model)[:19]}…,"
        f" loaded in {time.monotonic() - start:.1f} s",
    )


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    place = folder.resolve()
    while not place.is_dir():
        place = place.parent
    return place


def _print_table(checks: Sequence[Check]) -> None:
    table = Table(title="prefixworks doctor")
    for column in ("check", "status", "found", "what to do"):
        table.add_column(column, overflow="fold")
    for check in checks:
        color = _COLORS[check.status]
        table.add_row(
            check.name, f"[{color}]{check.status}[/]", escape(check.found), escape(check.advice)
        )
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
