"""What runs in a pod: a stage with the words of a file, and for training the ranks of this node.

No shell stands between the manifest and the stage, so no word can be taken for a command.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Self

from pipeline.errors import EXIT_INTERRUPTED, ConfigError, TrainingError

_FORWARDED = (signal.SIGTERM, signal.SIGUSR1)
_LOOK_EVERY_S = 0.1
_FIRST_RANK_TIMEOUT_S = 600.0
_LAST_WORDS_S = 15.0
"""How long ranks may still speak after another one failed; they find out for themselves."""
_KILL_AFTER_S = 30.0


def main(argv: Sequence[str]) -> int:
    """Runs what the arguments say and returns its exit status.

    Raises:
        ConfigError: the file or the surroundings are not what the manifest promises.
    """
    parser = argparse.ArgumentParser(prog="python -m jobs.launch.kubernetes.entry")
    parser.add_argument("arguments", type=Path, help="JSON list of the stage's words")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--ranks-per-node", type=int, help="start so many ranks of the stage train")
    parser.add_argument("--node-rank-from", default="JOB_COMPLETION_INDEX", help="a variable")
    asked = parser.parse_args(argv)
    for number in _FORWARDED:
        signal.signal(number, _leave)
    words = read_words(asked.arguments)
    if asked.ranks_per_node is None:
        from jobs.cli import main as command

        return command(words)
    node = _node_rank(asked.node_rank_from, asked.nodes)
    ranks = rank_environments(os.environ, node, asked.nodes, asked.ranks_per_node)
    wait_for_host(os.environ.get("MASTER_ADDR", ""), _FIRST_RANK_TIMEOUT_S)
    return run_ranks([sys.executable, "-m", "jobs.train", *words[1:]], ranks)


def read_words(path: Path) -> list[str]:
    """The words of a command line from a JSON list.

    Raises:
        ConfigError: there is no such list.
    """
    try:
        words = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: no arguments can be read: {error}") from error
    if not isinstance(words, list) or not words or not all(isinstance(each, str) for each in words):
        raise ConfigError(f"{path}: must hold a JSON list of texts, the stage first")
    return words


def rank_environments(
    environment: Mapping[str, str], node: int, nodes: int, ranks_per_node: int
) -> list[dict[str, str]]:
    """The variables of each rank of one node, by torchrun's names.

    Args:
        environment: Of the pod, with MASTER_ADDR and MASTER_PORT.
        node: This node among all, from 0.
        nodes: All nodes.
        ranks_per_node: Ranks on each.
    """
    return [
        {
            **environment,
            "RANK": str(node * ranks_per_node + local),
            "WORLD_SIZE": str(nodes * ranks_per_node),
            "LOCAL_RANK": str(local),
            "LOCAL_WORLD_SIZE": str(ranks_per_node),
            # DeepSpeed's name for the same.
            "LOCAL_SIZE": str(ranks_per_node),
        }
        for local in range(ranks_per_node)
    ]


def wait_for_host(host: str, timeout_s: float) -> None:
    """Waits until the name of the first rank's pod is known, which takes as long as its start.

    Raises:
        ConfigError: MASTER_ADDR is not set.
        TrainingError: the name stays unknown.
    """
    if not host:
        raise ConfigError("MASTER_ADDR is not set: ranks on Kubernetes need the first pod's name")
    until = time.monotonic() + timeout_s
    while True:
        try:
            socket.getaddrinfo(host, None)
        except OSError as error:
            if time.monotonic() > until:
                raise TrainingError(f"no pod {host} after {timeout_s:.0f} s: {error}") from error
            time.sleep(1)
        else:
            return


def run_ranks(command: Sequence[str], environments: Sequence[Mapping[str, str]]) -> int:
    """Starts ranks, hands signals to them and waits until all have ended.

    Returns:
        0 when all ended well, else the status of the first that did not: 75 where they saved their
        state, 128 and the number of the signal for one that was killed.
    """
    with _Ranks() as ranks:
        for environment in environments:
            ranks.start(command, environment)
        return ranks.wait()


class _Ranks:
    """The ranks of this node; none outlives it."""

    def __init__(self) -> None:
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._asked: int | None = None

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._forward) for number in _FORWARDED}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        for process in self._running.values():
            process.kill()
            process.wait()

    def start(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Starts one rank."""
        process = subprocess.Popen(command, env=dict(environment))
        self._running[int(environment["RANK"])] = process
        if self._asked is not None:
            process.send_signal(self._asked)

    def wait(self) -> int:
        """Waits for all; when one ends early, the others are asked to stop, and then made to."""
        status, ended_at = 0, 0.0
        while self._running:
            for rank, process in list(self._running.items()):
                ended = process.poll()
                if ended is None:
                    continue
                del self._running[rank]
                if ended != 0 and status == 0:
                    status, ended_at = _exit_status(rank, ended), time.monotonic()
            if status != 0:
                self._end(status, time.monotonic() - ended_at)
            time.sleep(_LOOK_EVERY_S)
        return status

    def _end(self, status: int, since_s: float) -> None:
        if status == EXIT_INTERRUPTED:
            # The others are saving too, as long as it takes; one that only starts would wait for
            # ranks that are gone.
            self._ask()
        elif since_s > _LAST_WORDS_S + _KILL_AFTER_S:
            self._tell(signal.SIGKILL)
        elif since_s > _LAST_WORDS_S:
            self._ask()

    def _ask(self) -> None:
        """Asks all to stop, unless they were asked before: who is saving needs no second call."""
        if self._asked is None:
            self._forward(signal.SIGTERM, None)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self._asked = number
        self._tell(number)

    def _tell(self, number: int) -> None:
        for process in list(self._running.values()):
            with suppress(ProcessLookupError):
                process.send_signal(number)


def _leave(number: int, frame: FrameType | None) -> None:
    """Ends this process: the first process of a pod ignores every signal that it does not take."""
    print("error: asked to stop; nothing is lost", file=sys.stderr, flush=True)
    raise SystemExit(EXIT_INTERRUPTED)


def _exit_status(rank: int, ended: int) -> int:
    if ended > 0:
        return ended
    name = signal.Signals(-ended).name
    print(f"error: rank {rank} was killed by {name}", file=sys.stderr, flush=True)
    return 128 - ended


def _node_rank(variable: str, nodes: int) -> int:
    text = os.environ.get(variable, "")
    if not text.isdecimal() or int(text) >= nodes:
        raise ConfigError(f"{variable} = {text!r}: must be this node's number, below {nodes}")
    return int(text)


if __name__ == "__main__":
    from jobs.cli import run_stage

    sys.exit(run_stage(main, sys.argv[1:]))
