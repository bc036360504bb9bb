"""Commands of one subject, such as `prefixworks data`, each in a file of its own."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from jobs.cli import Command


def group_parser(
    subject: str, description: str, commands: Mapping[str, Command]
) -> argparse.ArgumentParser:
    """The command line up to the command, which parses the rest.

    Args:
        subject: Word that the commands stand behind.
        description: One sentence for its help.
        commands: The commands by name.
    """
    width = max(map(len, commands))
    words = "\n".join(f"  {name:<{width}}  {each.summary}" for name, each in commands.items())
    examples = "\n".join(f"  {each.example}" for each in commands.values())
    parser = argparse.ArgumentParser(
        prog=f"prefixworks {subject}",
        usage=f"prefixworks {subject} COMMAND ...",
        description=description,
        epilog=f"commands:\n{words}\n\nexamples:\n{examples}\n\n"
        f"`prefixworks {subject} COMMAND --help` lists the settings of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=list(commands), metavar="COMMAND")
    return parser
