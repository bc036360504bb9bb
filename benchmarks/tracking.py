"""What recording a run costs a training step: no tracking, a healthy server, one that hangs.

    python benchmarks/tracking.py --arch tiny --repeats 20

Every arm is a prefix step as training takes it, and then tells a line of metrics, at every step and
not only at each tenth. The healthy server is a real MLflow server on this machine, so what it works
for itself falls on the arms too; the hanging one accepts connections and never answers.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

# Started by its path, a script sees its own folder only.
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measure import Build, Row, Work, measure, report
from benchmarks.settings import Settings, parse
from benchmarks.train_step import known_arms
from benchmarks.work_folder import work_folder
from pipeline.config import RunConfig
from pipeline.tracking.config import TrackingConfig

OFF, HEALTHY, HANGING = "off", "healthy server", "hanging server"
_STEPS = 5
"""Steps of one turn of an arm."""
_START_S = 120.0
_METRICS = {
    f"train/{name}": 1.0
    for name in (
        *("loss", "nll", "lr", "epoch", "grad_norm", "samples_per_s", "tokens_per_s"),
        *("data_wait_share", "step_s", "forward_s", "backward_s", "optimizer_s", "memory_mib"),
    )
}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    settings = parse("What recording a run costs a training step.", argv)
    unknown = [name for name in settings.arms if name not in (OFF, HEALTHY, HANGING)]
    if unknown:
        sys.exit(f"no arm {unknown[0]!r}; there are: {OFF}, {HEALTHY}, {HANGING}")
    chosen = settings.arms or (OFF, HEALTHY, HANGING)
    # Ended from outside, it ends its server too.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with work_folder(None, "tracking") as folder, contextlib.ExitStack() as stack:
        arms: dict[str, Build] = {}
        for name in chosen:
            uri = None
            if name == HEALTHY:
                uri = stack.enter_context(_healthy_server(folder))
            elif name == HANGING:
                uri = stack.enter_context(_hanging_server())
            arms[name] = functools.partial(_step, uri, folder / name.replace(" ", "-"))
        rows = measure(arms, settings)
    report("Tracking", rows, settings, _comparison(rows))


def _step(uri: str | None, folder: Path, settings: Settings) -> Work:
    """A few steps, each of them told."""
    train = known_arms()["prefix"](settings)
    if uri is None:
        return Work(functools.partial(_repeat, train.run), times=_STEPS)
    from pipeline.tracking.mlflow import MlflowHook

    tracking = TrackingConfig(uri=uri, request_timeout_s=5, retry_s=1.0)
    config = RunConfig(name="benchmark", output_dir=str(folder), tracking=tracking)
    run_dir = folder / config.name
    run_dir.mkdir(parents=True)
    hook = MlflowHook()
    hook.on_start(run_dir, config)
    steps = iter(range(1, 2**31))

    def run() -> None:
        train.run()
        hook.on_log(next(steps), _METRICS)

    return Work(functools.partial(_repeat, run), times=_STEPS)


def _repeat(run: Callable[[], object]) -> None:
    for _ in range(_STEPS):
        run()


@contextlib.contextmanager
def _healthy_server(folder: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", f"--port={port}"),
        *("--workers=1", "--serve-artifacts", f"--backend-store-uri=sqlite:///{folder}/server.db"),
        f"--artifacts-destination={folder / 'files'}",
    ]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}", server)
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _wait_for(uri: str, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _START_S
    while time.monotonic() < until and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{uri}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    sys.exit("the MLflow server did not start; try `mlflow server` by hand to see why")


@contextlib.contextmanager
def _hanging_server() -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        # The system accepts for us, as far as the backlog goes.
        listener.listen(1024)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def _comparison(rows: Sequence[Row]) -> list[str]:
    found = {row.arm: row.median_s for row in rows}
    if OFF not in found:
        return []
    return [
        f"{name}: {seconds / found[OFF] - 1:+.2%} of a step without tracking"
        for name, seconds in found.items()
        if name != OFF
    ]


if __name__ == "__main__":
    main()
