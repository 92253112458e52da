"""What can be typed after each command, taken from its parser: options, places and verbs.  No I/O."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

KINDS = {
    "NODE": "node", "NODES": "nodes", "{NODE|home|balance}": "destination", "PID": "process", "FILE": "file", "CMD": "command",
}  # fmt: skip
"""What a place takes, by its metavar; everything else cannot be guessed."""
DESTINATIONS = ("home", "balance")


@dataclass(frozen=True)
class Place:
    """A word to be typed.  ``kind``: one of :data:`KINDS`, ``words`` (one of ``words``) or ``none`` (nothing to propose)."""

    kind: str
    name: str
    words: tuple[str, ...] = ()
    optional: bool = False
    many: bool = False


@dataclass(frozen=True)
class Option:
    """``-a``, ``--all``: what it means, and its value if it has one."""

    names: tuple[str, ...]
    text: str
    value: Place | None = None


@dataclass(frozen=True)
class Command:
    """A command, or a verb of one."""

    name: str
    text: str = ""
    options: tuple[Option, ...] = ()
    places: tuple[Place, ...] = ()
    verbs: tuple[Command, ...] = ()


def of_parser(p: argparse.ArgumentParser, name: str, text: str = "") -> Command:
    """A command from its parser."""
    options: list[Option] = []
    places: list[Place] = []
    verbs: list[Command] = []
    for action in p._actions:  # argparse has no public way to ask
        if isinstance(action, argparse._SubParsersAction):
            texts = {a.dest: a.help or "" for a in action._choices_actions}
            verbs += [of_parser(sub, verb, texts.get(verb, "")) for verb, sub in action.choices.items()]
        elif action.option_strings:
            value = None if action.nargs == 0 else _place(action)
            options.append(Option(tuple(action.option_strings), _plain(action), value))
        else:
            places.append(_place(action))
    return Command(name, text or p.description or "", tuple(options), tuple(places), tuple(verbs))


def _place(action: argparse.Action) -> Place:
    name = action.metavar if isinstance(action.metavar, str) else action.dest
    many, optional = action.nargs in ("*", "+"), action.nargs in ("?", "*")
    if action.choices:
        return Place("words", action.dest, tuple(str(c) for c in action.choices), optional, many)
    return Place(KINDS.get(name, "none"), name, (), optional, many)


def _plain(action: argparse.Action) -> str:
    text = (action.help or "").replace("%(default)s", str(action.default))
    return text.replace("%%", "%").replace("\n", " ")
