"""The step of a Slurm job: how its ranks are started, and how they are asked to stop."""

from __future__ import annotations

import re
import shlex

from jobs.launch.config import LaunchConfig
from jobs.launch.freeze import CODE_FOLDER, LOGS, FrozenJob
from jobs.launch.script import interpreter, quoted
from jobs.launch.slurm_array import TRIAL
from pipeline.errors import ConfigError

HOSTS = 'scontrol show hostnames "$SLURM_JOB_NODELIST"'
"""Shell that prints the job's nodes, one a line."""

# What DeepSpeed puts between quotation marks, or separates variables by.
_UNSAFE = re.compile(r"[^\w@+=./-]")

_RANK_LOG = "rank-%t.log"
_NODE_LOG = "node-%t.log"


def forward(launcher: str) -> str:
    """Shell that asks all ranks to save and stop.

    srun hands USR1 on; TERM it would answer by killing the ranks. DeepSpeed's launcher hands
    nothing on, so there Slurm itself tells the processes of the step, again and again, since the
    launcher takes its time to make one.
    """
    if launcher == "deepspeed":
        told = 'scancel --signal=USR1 "$SLURM_JOB_ID"; sleep 1'
        return f'while kill -0 "$step" 2>/dev/null; do {told}; done &'
    return 'kill -USR1 "$step";'


def step(frozen: FrozenJob) -> list[str]:
    """Shell that starts the ranks in the background."""
    launch = frozen.launch
    if launch.stage == "train" and launch.slurm.launcher == "deepspeed":
        return _deepspeed(frozen)
    inner = frozen.command(interpreter(frozen))
    if launch.stage == "sweep":
        words = ["srun", "--nodes=1", "--ntasks=1", "--kill-on-bad-exit=1", *_contained(frozen)]
        return [f"{quoted([*words, *inner])} {TRIAL} &"]
    tasks, log = launch.ranks_per_node, _RANK_LOG
    if launch.stage == "train" and launch.slurm.launcher == "torchrun":
        ranks = ["--nodes", str(launch.nodes), "--ranks-per-node", str(tasks)]
        config, *rest = inner[3:]
        inner = [inner[0], "-m", "jobs.launch.torchrun_node", *ranks, config, *rest]
        tasks, log = 1, _NODE_LOG
    words = [
        "srun",
        f"--nodes={launch.nodes}",
        f"--ntasks={launch.nodes * tasks}",
        f"--ntasks-per-node={tasks}",
        f"--cpus-per-task={launch.cpus_per_process * launch.ranks_per_node // tasks}",
        *_srun_options(frozen, log),
        *_contained(frozen),
        *inner,
    ]
    return [f"{quoted(words)} &"]


def check_step(launch: LaunchConfig) -> None:
    """Refuses what cannot be started.

    Raises:
        ConfigError: image, volumes and launcher exclude each other.
    """
    slurm = launch.slurm
    if (launch.image is None) != (slurm.container is None):
        raise ConfigError(
            f"image = {launch.image!r}: needs slurm.container = pyxis or apptainer, and that needs"
            " an image"
        )
    if launch.image is not None and slurm.launcher == "deepspeed":
        raise ConfigError(
            "slurm.launcher = deepspeed: starts ranks outside of images; take srun or torchrun"
        )
    if launch.volumes and launch.image is None:
        raise ConfigError(
            f"volumes[0].mount = {launch.volumes[0].mount!r}: without an image a job sees the"
            " folders of its nodes, and none can be mounted"
        )
    for index, volume in enumerate(launch.volumes):
        if not volume.source.startswith("/"):
            raise ConfigError(
                f"volumes[{index}].source = {volume.source!r}: backend = slurm mounts paths from /"
            )
        if set(volume.source + volume.mount) & set(":,"):
            raise ConfigError(
                f"volumes[{index}]: its paths must not hold ':' or ',', which separate mounts"
            )


def _srun_options(frozen: FrozenJob, log: str) -> list[str]:
    return [
        "--kill-on-bad-exit=1",
        "--open-mode=append",
        f"--output={frozen.folder / LOGS / log}",
    ]


def _deepspeed(frozen: FrozenJob) -> list[str]:
    """DeepSpeed's own launcher, which calls srun for the ranks.

    It puts the folder that it starts in before all other code, so that must be the frozen code; the
    ranks are sent back to the working folder by srun. It writes variables into one option,
    separated by commas, and knows the nodes from a host file.
    """
    launch = frozen.launch
    if _UNSAFE.search(str(frozen.folder)):
        raise ConfigError(
            f"output_root = {launch.output_root!r}: {str(frozen.folder)!r} may hold only letters,"
            " digits and @+=./_- with slurm.launcher = deepspeed, which hands variables on unquoted"
        )
    srun = [
        f"--chdir={frozen.working_dir}",
        f"--ntasks-per-node={launch.ranks_per_node}",
        f"--cpus-per-task={launch.cpus_per_process}",
        *_srun_options(frozen, _RANK_LOG),
    ]
    python, _, _, *arguments = frozen.command(interpreter(frozen))
    words = [
        *(python, "-m", "deepspeed.launcher.runner", "--launcher=slurm", "--force_multi"),
        *("--no_ssh_check", f"--num_nodes={launch.nodes}", f"--launcher_args={shlex.join(srun)}"),
    ]
    hosts = '"$job/hosts.$SLURM_JOB_ID"'
    slots = launch.ranks_per_node
    return [
        "# Its launcher asks which accelerator there is before any rank does.",
        *([] if launch.accelerators_per_node else ["export DS_ACCELERATOR=cpu"]),
        f"{HOSTS} | sed 's/$/ slots={slots}/' >{hosts}",
        f'cd -- "$job"/{CODE_FOLDER} || finish 1',
        f'{quoted(words)} --hostfile={hosts} --master_addr="$MASTER_ADDR"'
        f' --master_port="$MASTER_PORT" "$job"/{CODE_FOLDER}/jobs/train.py {quoted(arguments)} &',
    ]


def _contained(frozen: FrozenJob) -> list[str]:
    """What makes a task run in the image; the job's own folders are always seen there."""
    launch = frozen.launch
    if launch.image is None:
        return []
    seen = [(str(path), str(path), False) for path in (frozen.working_dir, frozen.folder)]
    seen += [(each.source, each.mount, each.read_only) for each in launch.volumes]
    for source, _, _ in seen[:2]:
        if set(source) & set(":,"):
            raise ConfigError(
                f"image = {launch.image!r}: {source} must be seen in it, and its name holds ':' or"
                " ',', which separate mounts"
            )
    mounts = ",".join(f"{source}:{mount}{':ro' if ro else ''}" for source, mount, ro in seen)
    if launch.slurm.container == "pyxis":
        return [
            f"--container-image={launch.image}",
            f"--container-mounts={mounts}",
            f"--container-workdir={frozen.working_dir}",
        ]
    gpus = ["--nv"] if launch.accelerators_per_node else []
    return [
        *("apptainer", "exec", *gpus, f"--bind={mounts}", f"--pwd={frozen.working_dir}"),
        launch.image,
    ]
