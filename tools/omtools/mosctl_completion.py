"""mosctl's verb ``completion``: the scripts by which shells complete the words of all commands, and the words that these ask for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mig.errors import BadInput, MigError
from omtools import output

if TYPE_CHECKING:
    import argparse

SCRIPTS = {"bash": "mig.bash", "zsh": "mig.zsh", "fish": "mig.fish"}
"""Files of the package ``omtools.completion``, made from the commands' own parsers by ``python -m omtools.manual``."""


def add_verbs(verb: Callable[..., None]) -> None:
    """Add it to mosctl's parser by its ``verb``."""
    verb(
        "completion", _completion, "print the script by which a shell completes the words of all commands",
        ("what", {"metavar": "bash|zsh|fish|nodes|processes", "choices": (*SCRIPTS, "nodes", "processes"),
                  "help": "the shell; nodes and processes: the words that the scripts ask for, one a line"}),
    )  # fmt: skip


def _completion(a: argparse.Namespace) -> int:
    if a.what in SCRIPTS:
        if a.json:
            raise BadInput("--json goes with nodes and processes")
        sys.stdout.write((Path(__file__).parent / "completion" / SCRIPTS[a.what]).read_text())
        return 0
    try:
        rows = _nodes() if a.what == "nodes" else _processes()
    except MigError:
        rows = []  # a shell that completes a word has no use for a complaint
    if a.json:
        output.print_json([word for word, _ in rows])
    else:
        sys.stdout.writelines(f"{word}\t{output.plain(text)}\n" for word, text in rows)
    return 0


def _nodes() -> list[tuple[str, str]]:
    from omtools.client import Client

    with Client() as client:
        nodes = client.call("status")["nodes"]
    return sorted((str(n["name"]), f"{n['state']}, load {n['load']:.2f}") for n in nodes)


def _processes() -> list[tuple[str, str]]:
    from omtools.client import Client

    with Client() as client:
        guests = client.call("guests", all=False)["guests"]
    return [(str(g["pid"]), f"{g['comm']} of {g['home']} on {g['where']}") for g in guests if g.get("pid")]
