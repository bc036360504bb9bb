"""Hosts that are reached by ssh: an sshd each, on an address of their own of this machine.

Needs root and the programs of Debian's packages openssh-server, openssh-client and pdsh.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.ray_cluster import free_port

_SSHD = "/usr/sbin/sshd"


def skip_without_hosts() -> None:
    """Skips the test where hosts cannot be made."""
    missing = [name for name in ("pdsh", "ssh", "ssh-keygen", _SSHD) if shutil.which(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}, of pdsh, openssh-client and openssh-server")
    if os.geteuid() != 0:
        pytest.skip("an sshd of one's own needs root")


class SshHosts:
    """Two hosts, while they are open as a context."""

    names = ("host-1", "host-2")

    def __init__(self, folder: Path) -> None:
        """Names the hosts.

        Args:
            folder: An empty folder for keys, configuration and logs.
        """
        self.folder = folder
        self.hostfile = folder / "hosts"
        # pdsh hands these to ssh, so that nobody's own configuration is touched.
        self.environment = {"PDSH_SSH_ARGS_APPEND": f"-F {folder / 'config'}"}

    def __enter__(self) -> SshHosts:
        self.folder.chmod(0o700)
        for name in ("host_key", "user_key"):
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name))
        shutil.copy(self.folder / "user_key.pub", self.folder / "authorized")
        Path("/run/sshd").mkdir(exist_ok=True)
        port = free_port()
        config = [
            *("Host host-*", f"Port {port}", "User root", f"IdentityFile {self.folder}/user_key"),
            *("IdentitiesOnly yes", "StrictHostKeyChecking no", "LogLevel ERROR"),
            f"UserKnownHostsFile {self.folder}/known",
        ]
        for number, name in enumerate(self.names, start=1):
            config = [f"Host {name}", f"HostName 127.0.1.{number}", *config]
            self._start(name, f"127.0.1.{number}:{port}")
        (self.folder / "config").write_text("\n".join(config) + "\n")
        self.hostfile.write_text("".join(f"{name} slots=1\n" for name in self.names))
        for name in self.names:
            self._wait_for(name)
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.names:
            with suppress(OSError, ValueError):
                os.kill(int((self.folder / f"{name}.pid").read_text()), signal.SIGTERM)

    def _start(self, name: str, address: str) -> None:
        options = {
            "ListenAddress": address,
            "PidFile": self.folder / f"{name}.pid",
            "AuthorizedKeysFile": self.folder / "authorized",
            "UsePAM": "no",
            "StrictModes": "no",
            "PermitRootLogin": "prohibit-password",
        }
        words = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        log = str(self.folder / f"{name}.log")
        _run(_SSHD, "-f", "/dev/null", "-h", str(self.folder / "host_key"), *words, "-E", log)

    def _wait_for(self, name: str) -> None:
        until = time.monotonic() + 30
        command = ["ssh", "-F", str(self.folder / "config"), name, "true"]
        while subprocess.run(command, check=False, capture_output=True).returncode != 0:
            assert time.monotonic() < until, f"{name} does not answer"
            time.sleep(0.2)


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words[0]}: {done.stderr}"
