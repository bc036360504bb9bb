"""The `prefixworks` command: one word a stage.

A stage's module is imported only when its word is given, so the overview appears at once. This is
also the process boundary: the errors that a user can act on become one line and an exit status,
everything else keeps its traceback.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version

EXIT_FAILED = 1
EXIT_CONFIG = 2
EXIT_BROKEN_OFF = 130


@dataclass(frozen=True)
class Command:
    """A stage of the pipeline as the overview shows it."""

    module: str
    """Module with `main(argv) -> int`."""
    summary: str
    """One line for the overview."""
    example: str
    """A command that works as it stands, once the stages above it have run."""


COMMANDS: dict[str, Command] = {
    "demo": Command(
        "jobs.demo",
        "the whole way on the embedded world, in minutes on a laptop",
        "prefixworks demo",
    ),
    "synthesize": Command(
        "jobs.synthesize",
        "write the embedded world: raw images with annotations in real formats",
        "prefixworks synthesize --output=data/raw/shapes --domain=downstream",
    ),
    "prepare": Command(
        "jobs.prepare",
        "raw images and annotations to WebDataset shards (Ray)",
        "prefixworks prepare --config=prepare.yaml --workers=2",
    ),
    "data": Command(
        "jobs.data",
        "check sources before preparing; verify and inspect prepared datasets",
        "prefixworks data verify data/prepared/train",
    ),
    "features": Command(
        "jobs.features",
        "what a frozen image trunk makes of a data set's images, computed once (Ray)",
        "prefixworks features --dataset=data/prepared/train --base=ofa-micro",
    ),
    "new-base": Command(
        "jobs.new_base",
        "write a tokenizer and an architecture, for pretraining from nothing",
        "prefixworks new-base --output=data/bases/micro --datasets='[data/prepared/train]'",
    ),
    "model": Command(
        "jobs.model",
        "look at checkpoints of every layout and convert them into bases",
        "prefixworks model convert OFA-Sys/ofa-large data/bases/ofa_large",
    ),
    "train": Command(
        "jobs.train",
        "tune a prompt on a frozen base (DeepSpeed)",
        "prefixworks train --config=train.yaml --optimizer.lr=3e-3",
    ),
    "sweep": Command(
        "jobs.sweep",
        "train variants of a run, and say which is best (Ray Tune)",
        "prefixworks sweep --config=sweep.yaml --dry-run",
    ),
    "launch": Command(
        "jobs.launch.command",
        "run a stage as a job, on this machine or a cluster, and look after it",
        "prefixworks launch train --on=local --name=first --recipe=train.yaml --submit",
    ),
    "runs": Command(
        "jobs.runs",
        "list runs, and tell MLflow what it missed while it was down",
        "prefixworks runs list",
    ),
    "evaluate": Command(
        "jobs.evaluate",
        "score a run on held-out data, with pictures",
        "prefixworks evaluate --prompt=runs/grounding --dataset=data/prepared/test",
    ),
    "registry": Command(
        "jobs.registry",
        "register, compare, promote and fetch prompts (MLflow)",
        "prefixworks registry list",
    ),
    "predict": Command(
        "jobs.predict",
        "answer for one image with a registered prompt",
        "prefixworks predict --model=models:/grounding@champion --image=a.jpg --text='a red cup'",
    ),
    "doctor": Command(
        "jobs.doctor",
        "check this machine or a job's nodes, and say what to do about each failure",
        "prefixworks doctor",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: Arguments after `prefixworks`; None takes the process's own.

    Returns:
        Exit status: 0 done, 1 failed, 2 bad configuration, 75 interrupted with its state saved,
        130 broken off from the keyboard.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0 if words else EXIT_CONFIG
    if words[0] == "--version":
        print(f"prefixworks {version('prefixworks')}")
        return 0
    command = COMMANDS.get(words[0])
    if command is None:
        near = difflib.get_close_matches(words[0], COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"commands: {', '.join(COMMANDS)}"
        return _say(f"no command {words[0]!r}; {hint}", EXIT_CONFIG)
    return run_stage(lambda rest: stage_main(command)(rest), words[1:])


def overview() -> str:
    """The text of `prefixworks --help`."""
    width = max(map(len, COMMANDS))
    stages = "\n".join(
        f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()
    )
    examples = "\n".join(f"  {command.example}" for command in COMMANDS.values())
    return (
        "usage: prefixworks COMMAND [--config=RECIPE.yaml] [--section.setting=VALUE ...]\n"
        "\n"
        "Prompt tuning of a frozen OFA: from raw images and annotations to a registered prompt.\n"
        "\n"
        f"commands:\n{stages}\n"
        "\n"
        f"examples:\n{examples}\n"
        "\n"
        "Settings come from the defaults, then recipes, then the command line. --dry-run prints\n"
        "the resolved settings and the plan and does nothing. `prefixworks COMMAND --help` lists\n"
        "all settings of a command."
    )


def stage_main(command: Command) -> Callable[[Sequence[str]], int]:
    """Imports a stage and returns its main function."""
    entry: Callable[[Sequence[str]], int] = importlib.import_module(command.module).main
    return entry


def run_stage(stage: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Runs a stage's main as a process: known errors become one line on stderr and a status.

    Args:
        stage: Takes the arguments and returns the exit status.
        argv: The arguments.
    """
    # Here, not above: pipeline.errors is cheap, but the overview needs nothing at all.
    from pipeline.errors import ConfigError, PrefixworksError, TrainingError

    try:
        return stage(argv)
    except PrefixworksError as error:
        status = EXIT_CONFIG if isinstance(error, ConfigError) else EXIT_FAILED
        status = error.exit_code if isinstance(error, TrainingError) else status
        return _say(str(error), status)
    except KeyboardInterrupt:
        return _say("broken off from the keyboard", EXIT_BROKEN_OFF)


def _say(message: str, status: int) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
