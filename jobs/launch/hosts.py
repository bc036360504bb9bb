"""Training over machines without a scheduler: DeepSpeed's launcher reaches them by pdsh and ssh.

pdsh hands the command to a shell on each host, so it holds the job's folder alone, whose name is
plain; all that a user wrote stands in files there. The launcher answers signals by killing ranks,
so they are asked to stop by a file, which they look for.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from pathlib import Path

from jobs.launch.backend import Rendered
from jobs.launch.freeze import CODE_FOLDER, FrozenJob
from jobs.launch.local import LocalBackend
from jobs.launch.script import SCRIPT, interpreter, opening, packages_checked, quoted
from pipeline.errors import ConfigError

HOSTS_FILE = "hosts"
RANK_FILE = "rank.json"
"""What a rank needs to know beside its number."""
STOP_FILE = "stop"
"""Present once the ranks are asked to save and stop."""

# Nobody is there to type a password, and a host that is gone is to be noticed.
_SSH = "-oBatchMode=yes -oServerAliveInterval=30 -oServerAliveCountMax=4"
# Names of variables that DeepSpeed writes into the command line of each host begin so; passwords
# would be seen there, and in the log.
_HANDED_ON = ("MLFLOW", "NCCL", "UCX", "MV2")
_VARIABLES_FILE = "deepspeed.env"
_HOST = re.compile(r"([A-Za-z0-9][\w.-]*)\s+slots=([1-9][0-9]*)")
_PATH = "PYTHONPATH"
_UNSAFE = re.compile(r"[^\w@+=./-]")
# Above what services use, below where Linux takes the ports of outgoing connections from.
_PORT = "$((15000 + RANDOM % 15000))"


class HostsBackend(LocalBackend):
    """Runs a job from this machine on others; it is looked after as a local one is."""

    def render(self, frozen: FrozenJob) -> Rendered:
        """The script, the hosts, and what each rank reads.

        Raises:
            ConfigError: the job is not one that hosts can run, or they are not named rightly.
        """
        _check(frozen)
        hosts = _hosts(frozen)
        slots = frozen.launch.ranks_per_node
        return Rendered(
            files={
                SCRIPT: "\n".join(_script(frozen, hosts)) + "\n",
                HOSTS_FILE: "".join(f"{host} slots={slots}\n" for host in hosts),
                RANK_FILE: _for_ranks(frozen),
                _VARIABLES_FILE: ""
                if frozen.launch.accelerators_per_node
                else "DS_ACCELERATOR=cpu\n",
            },
            command=["bash", str(frozen.folder / SCRIPT)],
        )


def _script(frozen: FrozenJob, hosts: list[str]) -> list[str]:
    python, settings = interpreter(frozen), frozen.launch.hosts
    words = [
        *(python, "-m", "deepspeed.launcher.runner", "--launcher=pdsh", "--force_multi"),
        *("--no_ssh_check", f"--hostfile={frozen.folder / HOSTS_FILE}"),
        f"--master_addr={settings.master_addr or hosts[0]}",
    ]
    rank = ["--no_local_rank", "--module", "jobs.launch.host_rank", str(frozen.folder)]
    # Of the job's variables the launcher would hand some on, to be read by a shell there.
    path = {name: text for name, text in frozen.launch.environment.items() if name == _PATH}
    bare = dataclasses.replace(frozen.launch, environment=path, secrets=[])
    return [
        *opening(dataclasses.replace(frozen, launch=bare), f'touch "$job"/{STOP_FILE};'),
        *packages_checked(frozen),
        *_reached(frozen, hosts),
        *_alone(frozen),
        "# Its launcher asks which accelerator there is before any rank does.",
        *([] if frozen.launch.accelerators_per_node else ["export DS_ACCELERATOR=cpu"]),
        f"unset {' '.join(_names(prefix) for prefix in _HANDED_ON)}",
        f'export DS_ENV_FILE="$job"/{_VARIABLES_FILE}',
        f'cd -- "$job"/{CODE_FOLDER} || finish 1',
        f"{quoted(words)} --master_port={_PORT} {quoted(rank)} &",
        "step=$!",
        "wait_for_step",
        'finish "$status"',
    ]


def _reached(frozen: FrozenJob, hosts: list[str]) -> list[str]:
    """Ends the job where a host cannot be reached, before ranks elsewhere wait for it."""
    port = frozen.launch.hosts.ssh_port
    ssh = _SSH if port is None else f"{_SSH} -p{port}"
    sees = ["test", "-r", str(frozen.folder / RANK_FILE)]
    return [
        "export PDSH_RCMD_TYPE=ssh",
        f'export PDSH_SSH_ARGS_APPEND="${{PDSH_SSH_ARGS_APPEND:+$PDSH_SSH_ARGS_APPEND }}{ssh}"',
        f"if ! {quoted(['pdsh', '-S', '-w', ','.join(hosts), *sees])}; then",
        "  echo 'error: not every host can be reached by pdsh and ssh and sees the job' >&2",
        "  finish 1",
        "fi",
    ]


def _alone(frozen: FrozenJob) -> list[str]:
    """Has ranks of an earlier start, left behind when this machine went down, save and end."""
    # Here, because ranks import this module before they have the variables that torch reads.
    from pipeline.training.run_lock import LOCK

    lock = shlex.quote(str(frozen.last_file().with_name(LOCK)))
    patience_s = 2 * frozen.launch.signal_before_end_s
    return [
        f'touch "$job"/{STOP_FILE}',
        f"if [ -e {lock} ] && ! flock --shared --timeout={patience_s} {lock} true; then",
        "  echo 'error: ranks of an earlier start do not end' >&2",
        "  finish 1",
        "fi",
        f'rm -f -- "$job"/{STOP_FILE}',
    ]


def _names(prefix: str) -> str:
    """Shell for the names of all variables that begin so."""
    return f'"${{!{prefix}@}}"'


def _for_ranks(frozen: FrozenJob) -> str:
    launch = frozen.launch
    _, _, _, *words = frozen.command("python")
    content = {
        "working_dir": str(frozen.working_dir),
        "environment": {"OMP_NUM_THREADS": str(launch.cpus_per_process), **launch.environment},
        "secrets": [str(Path(path).absolute()) for path in launch.secrets],
        "words": words,
        "stop_after_s": launch.time_limit_s - launch.signal_before_end_s,
        "end_after_s": launch.signal_before_end_s,
    }
    return json.dumps(content, indent=2) + "\n"


def _check(frozen: FrozenJob) -> None:
    launch = frozen.launch
    if launch.stage != "train":
        raise ConfigError(f"stage = {launch.stage}: backend = hosts only trains; take local")
    for path, value in {
        "image": launch.image,
        "volumes": [volume.mount for volume in launch.volumes] or None,
    }.items():
        if value is not None:
            raise ConfigError(f"{path} = {value!r}: backend = hosts runs what is installed there")
    if _UNSAFE.search(launch.environment.get(_PATH, "").replace(":", "")):
        raise ConfigError(
            f"environment.{_PATH} = {launch.environment[_PATH]!r}: may hold only letters, digits"
            " and :@+=./_- with backend = hosts, as a shell on each host reads it"
        )
    if _UNSAFE.search(str(frozen.folder)) or _UNSAFE.search(interpreter(frozen)):
        raise ConfigError(
            f"output_root = {launch.output_root!r}: {str(frozen.folder)!r} and the path of Python"
            " may hold only letters, digits and @+=./_- with backend = hosts, as a shell on each"
            " host reads them"
        )


def _hosts(frozen: FrozenJob) -> list[str]:
    path = frozen.launch.hosts.hostfile
    if path is None:
        raise ConfigError("hosts.hostfile = null: backend = hosts needs a file of NAME slots=N")
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "no UTF-8"
        raise ConfigError(f"hosts.hostfile = {path!r}: {reason}") from error
    names = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = _HOST.fullmatch(line.strip())
        if found is None:
            raise ConfigError(
                f"hosts.hostfile = {path!r}: line {number} is {line!r}, and must be NAME slots=N"
            )
        if int(found[2]) >= frozen.launch.ranks_per_node:
            names.append(found[1])
    wanted = frozen.launch.nodes
    if len(names) < wanted or len(set(names)) < len(names):
        raise ConfigError(
            f"nodes = {wanted}: {path!r} has {len(set(names))} different hosts with"
            f" {frozen.launch.ranks_per_node} or more slots, each of which may stand there once"
        )
    return names[:wanted]


BACKEND = HostsBackend()
