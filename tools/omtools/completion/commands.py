"""The commands of the distribution and their parsers.  Imports all of them: for generators and tests, not for commands."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from omdiscd import command

from omtools import migrate, mosctl, mosmon, mosps, mosrun
from omtools.completion.model import Command, of_parser
from omtools.moslab import cli


def mosrun_parser() -> argparse.ArgumentParser:
    """mosrun's command line; mosrun itself does without argparse, which would double its start-up time.  A test compares it with HELP."""
    p = argparse.ArgumentParser(prog="mosrun", description="start a command as a job that may move", add_help=False)
    texts = mosrun.option_texts()
    for letter, dest in mosrun.SWITCHES.items():
        p.add_argument(f"-{letter}", dest=dest, action="store_true", help=texts[f"-{letter}"])
    for letter, metavar in mosrun.VALUED.items():
        p.add_argument(f"-{letter}", metavar=metavar, help=texts[f"-{letter}"])
    p.add_argument("--help", action="store_true", help="print help")
    p.add_argument("--version", action="store_true", help="print the version")
    p.add_argument("command", metavar="CMD", nargs=argparse.REMAINDER)
    return p


PARSERS: dict[str, Callable[[], argparse.ArgumentParser]] = {
    "migrate": migrate.parser,
    "mosrun": mosrun_parser,
    "mosps": mosps.parser,
    "mosctl": mosctl.parser,
    "mosmon": mosmon.parser,
    "moslab": cli.parser,
    "omdiscd": command.parser,
}


def commands() -> list[Command]:
    """All of them, taken apart."""
    return [of_parser(make(), name) for name, make in PARSERS.items()]
