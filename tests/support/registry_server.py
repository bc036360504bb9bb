"""A team's MLflow on this machine: a real server with users, over PostgreSQL and an S3 server.

Where PostgreSQL is not installed the server keeps its records in a sqlite file, so that everything
but PostgreSQL itself is still tested.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.support.s3_server import BUCKET, ENVIRONMENT, S3Server, free_port

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 150
USER, PASSWORD = "admin", secrets.token_urlsafe(16)
CREDENTIALS = {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": PASSWORD}
"""What a client of the server needs in its environment."""
_USERS = """[mlflow]
default_permission = READ
database_uri = sqlite:///{folder}/users.db
admin_username = admin
auth_cache_ttl_seconds = 600
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""


def postgres_folder() -> Path | None:
    """Where PostgreSQL's programs are: Debian keeps them beside the path."""
    found = shutil.which("initdb")
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return Path(found).parent if found else places[-1].parent if places else None


@dataclass(frozen=True)
class TeamServer:
    """A running MLflow server."""

    uri: str
    backend_uri: str
    folder: Path

    @property
    def on_postgres(self) -> bool:
        return self.backend_uri.startswith("postgresql")


@contextmanager
def team_server(s3: S3Server, folder: Path) -> Iterator[TeamServer]:
    """MLflow's server, ended with its workers at the end.

    Args:
        s3: Holds the artifacts.
        folder: For the log and, without PostgreSQL, the records.
    """
    if postgres_folder() is None:
        with _mlflow_server(f"sqlite:///{folder}/server.db", s3, folder) as server:
            yield server
        return
    with _postgres() as backend_uri, _mlflow_server(backend_uri, s3, folder) as server:
        yield server


@contextmanager
def _postgres() -> Iterator[str]:
    programs = postgres_folder()
    assert programs is not None
    # It refuses to run as root, and pytest's folders are closed to everyone else.
    user = "postgres" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="prefixworks-postgres-"))
    if user:
        shutil.chown(folder, user)
    port = free_port()

    def run(*command: str) -> None:
        subprocess.run(command, check=True, user=user, cwd=folder, stdout=subprocess.DEVNULL)

    data = str(folder / "data")
    run(f"{programs}/initdb", "-D", data, "-U", "mlflow", "--auth=trust", "--no-sync")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -k {folder} -c fsync=off"
    control = f"{programs}/pg_ctl"
    try:
        run(control, "-D", data, "-o", options, "-l", f"{folder}/log", "-w", "start")
        yield f"postgresql+psycopg://mlflow@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run(
            [control, "-D", data, "-m", "immediate", "-w", "stop"],
            user=user,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            check=False,
        )
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _mlflow_server(backend_uri: str, s3: S3Server, folder: Path) -> Iterator[TeamServer]:
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", backend_uri, "--workers", "1", "--serve-artifacts"]
    command += ["--artifacts-destination", f"s3://{BUCKET}/mlflow", "--app-name", "basic-auth"]
    users = folder / "users.ini"
    users.write_text(_USERS.format(folder=folder))
    environment = {
        **os.environ,
        **ENVIRONMENT,
        "AWS_DEFAULT_REGION": "us-east-1",
        "MLFLOW_S3_ENDPOINT_URL": s3.url,
        "MLFLOW_AUTH_CONFIG_PATH": str(users),
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    log = folder / "server.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, start_new_session=True
        )
    uri = f"http://127.0.0.1:{port}"
    try:
        _wait_until_healthy(uri, server, log)
        yield TeamServer(uri=uri, backend_uri=backend_uri, folder=folder)
    finally:
        # It would wait for connections that clients keep open, and has nothing to save.
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait(timeout=30)


def _wait_until_healthy(uri: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()
        with suppress(OSError), urllib.request.urlopen(f"{uri}/health", timeout=2):
            return
        time.sleep(0.3)
    raise TimeoutError(f"{uri}: {log.read_text()}")
