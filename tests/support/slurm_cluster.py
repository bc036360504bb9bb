"""A real Slurm cluster of several nodes on this machine, which needs no service that runs already.

All daemons are ours: munged with a key of its own, slurmctld, and one slurmd for each node, which
are told apart by their ports. Needs root, and Debian's packages slurm-wlm and munge.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.support.ray_cluster import free_port

NODES = ("n1", "n2")
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")
_PATIENCE_S = 60

# Requeued jobs wait until their old credential has expired. Neither control groups nor accounting
# are there. `high` preempts `low`, whose jobs go back into the queue after a time to save.
_CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/pids/slurmctld
SlurmdPidFile={folder}/pids/%n
SlurmctldLogFile={folder}/logs/slurmctld.log
SlurmdLogFile={folder}/logs/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_min_interval=200000,bf_interval=1,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
SlurmdTimeout=10
KillWait=30
MinJobAge=600
SlurmdParameters=config_overrides
{nodes}
PartitionName=low Nodes={names} Default=YES MaxTime=60 PriorityTier=1 GraceTime=60
PartitionName=high Nodes={names} MaxTime=60 PriorityTier=10 PreemptMode=OFF
"""
_NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} Sockets=1"
    " CoresPerSocket=2 ThreadsPerCore=1 RealMemory=4000 State=UNKNOWN"
)
# An old slurmd starts its control-group plugin even where nothing uses it.
_CGROUPS_2 = "CgroupPlugin=cgroup/v2\nIgnoreSystemd=yes\n"
_CGROUPS_1 = (
    "CgroupPlugin=cgroup/v1\nConstrainCores=no\nConstrainRAMSpace=no\nConstrainDevices=no\n"
)


def skip_without_slurm() -> None:
    """Skips the test where there is no Slurm, or no right to start one."""
    missing = [program for program in _PROGRAMS if shutil.which(program, path=_path()) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}, of Debian's packages slurm-wlm and munge")
    if os.geteuid() != 0:
        pytest.skip("a Slurm cluster of one's own needs root")


class SlurmCluster:
    """The cluster, while it is open as a context; its commands are to see `environment`."""

    def __init__(self, folder: Path) -> None:
        """Names the cluster.

        Args:
            folder: An empty folder for its state, with a path that is short enough for a socket.
        """
        self.folder = folder
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}

    def __enter__(self) -> SlurmCluster:
        for name in ("munge", "state", "spool", "pids", "logs"):
            (self.folder / name).mkdir(mode=0o755)
        (self.folder / "munge").chmod(0o711)
        (self.folder / "state").chmod(0o700)
        self._configure()
        try:
            self._start_munged()
            self._run("slurmctld", "-c")
            for name in NODES:
                self.start_node(name)
            self._wait_until_idle()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError, subprocess.SubprocessError):
            self._run("scancel", "--user=root")
            self._wait(lambda: not self._run("squeue", "--noheader").strip(), "jobs go on")
        for name in (*NODES, "slurmctld", "munged"):
            self._end(name)

    def start_node(self, name: str) -> None:
        """Starts the daemon of a node."""
        (self.folder / "spool" / name).mkdir(exist_ok=True)
        self._run("slurmd", "-N", name)

    def lose_node(self, name: str) -> None:
        """Kills a node with all that runs on it, as when its power fails."""
        daemon = self._daemon(name)
        assert daemon is not None
        lost = [daemon]
        for process in psutil.process_iter(["cmdline", "environ"]):
            environment = process.info["environ"] or {}
            if environment.get("SLURMD_NODENAME") == name or self._serves(process, name):
                lost.append(process)
        for process in lost:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def batch(self, *options: str, script: str) -> str:
        """Submits a script; the job's number."""
        words = ("sbatch", "--parsable", "--output=/dev/null", *options)
        return self._run(*words, input="#!/bin/bash\n" + script).strip()

    def signal_script(self, job_id: str) -> None:
        """Sends the signal of a time limit that comes near, as `--signal=B:USR1@...` does."""
        self._run("scancel", "--batch", "--signal=USR1", job_id)

    def facts(self, job_id: str) -> dict[str, str]:
        """What scontrol shows of a job."""
        words = self._run("scontrol", "show", "job", job_id).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def _configure(self) -> None:
        host = socket.gethostname().partition(".")[0]
        nodes = [_NODE.format(name=name, host=host, port=free_port()) for name in NODES]
        text = _CONFIG.format(
            host=host,
            port=free_port(),
            folder=self.folder,
            nodes="\n".join(nodes),
            names=",".join(NODES),
        )
        (self.folder / "slurm.conf").write_text(text)
        kind = subprocess.run(
            ["stat", "-fc", "%T", "/sys/fs/cgroup"], capture_output=True, text=True, check=False
        )
        cgroups = _CGROUPS_2 if kind.stdout.strip() == "cgroup2fs" else _CGROUPS_1
        (self.folder / "cgroup.conf").write_text(cgroups)

    def _start_munged(self) -> None:
        key = self.folder / "munge" / "key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        self._run(
            "munged",
            "--force",
            f"--key-file={key}",
            f"--socket={self.folder / 'munge' / 'socket'}",
            f"--pid-file={self.folder / 'pids' / 'munged'}",
            f"--log-file={self.folder / 'logs' / 'munged.log'}",
            f"--seed-file={self.folder / 'munge' / 'seed'}",
        )

    def _wait_until_idle(self) -> None:
        def idle() -> bool:
            states = self._run("sinfo", "--noheader", "--Node", "--partition=low", "--format=%T")
            return states.split() == ["idle"] * len(NODES)

        self._wait(idle, "the nodes did not come up")

    def _wait(self, done: Callable[[], bool], otherwise: str) -> None:
        until = time.monotonic() + _PATIENCE_S
        while not done():
            assert time.monotonic() < until, otherwise
            time.sleep(0.2)

    def _run(self, *words: str, input: str | None = None) -> str:
        done = subprocess.run(
            words,
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL if input is None else None,
            input=input,
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, f"{words[0]}: {done.stderr}"
        return done.stdout

    def _daemon(self, name: str) -> psutil.Process | None:
        with suppress(OSError, ValueError, psutil.NoSuchProcess):
            return psutil.Process(int((self.folder / "pids" / name).read_text()))
        return None

    def _serves(self, process: psutil.Process, name: str) -> bool:
        """Whether it is the daemon of a step on a node, which writes that node's log."""
        if not " ".join(process.info["cmdline"] or []).startswith("slurmstepd"):
            return False
        with suppress(psutil.Error):
            log = str(self.folder / "logs" / f"{name}.log")
            return any(file.path == log for file in process.open_files())
        return False

    def _end(self, name: str) -> None:
        if (daemon := self._daemon(name)) is None:
            return
        with suppress(psutil.NoSuchProcess):
            daemon.send_signal(signal.SIGTERM)
            with suppress(psutil.TimeoutExpired):
                daemon.wait(10)
                return
            daemon.kill()


@contextmanager
def open_cluster() -> Iterator[SlurmCluster]:
    """A cluster in a folder of its own; skips the test where there cannot be one."""
    skip_without_slurm()
    # Not below pytest's own folder: the path of a socket must be short.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)
    try:
        with SlurmCluster(folder) as running:
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _path() -> str:
    """Programs of administrators are not on everyone's PATH."""
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"
