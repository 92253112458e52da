"""``mosmon``: the pool at a glance, with openMosix's keys, and a way to steer it."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from mig.errors import BadInput
from omtools import output

if TYPE_CHECKING:
    import argparse

EXIT_CODES = """exit status:
  0 quit by the user   2 wrong usage, or no terminal"""


LAYOUTS = (
    ("w", "wide numbering of the nodes"),
    ("v", "vertical numbering"),
    ("V", "tight vertical numbering"),
    ("a", "automatic numbering (default)"),
)
QUANTITIES = (
    ("l", "show load (default)"),
    ("L", "show load on a log scale"),
    ("s", "show speed, and the number of CPUs"),
    ("m", "show memory"),
    ("r", "show raw memory"),
    ("u", "show utilizability"),
)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = output.parser("mosmon", "Watch the nodes of the pool, their processes and what moves where.", EXIT_CODES)
    for group in (LAYOUTS, QUANTITIES):
        one = p.add_mutually_exclusive_group()
        for key, text in group:
            one.add_argument(f"-{key}", dest="keys", action="append_const", const=key, help=text)
    p.add_argument("-d", dest="keys", action="append_const", const="d", help="show dead nodes too")
    p.add_argument("-t", dest="keys", action="append_const", const="t", help="show totals")
    p.add_argument("--view", choices=("chart", "processes", "nodes", "events"), help="begin with this view")
    p.add_argument("first", metavar="+N", nargs="?", help="begin the chart with node number N")
    return p


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    p = parser()
    a = p.parse_args(argv)
    if a.first is not None and not (a.first.startswith("+") and a.first[1:].isdigit()):
        p.error(f"{a.first!r}: the first node is given as +N")
    keys = [*(a.keys or ()), *(a.view[:1] if a.view else "")]
    return output.run(lambda: _watch(keys, int(a.first[1:]) if a.first else 1), "mosmon")


def _watch(keys: list[str], first: int) -> int:
    import curses
    import locale

    from omtools.mosmon.feed import Feed
    from omtools.mosmon.model import Model
    from omtools.mosmon.screen import Screen, glyphs

    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise BadInput("mosmon needs a terminal", hint="for programs: mosctl status --json")
    term = os.environ.get("TERM", "")
    try:
        curses.setupterm()
    except curses.error as e:
        raise BadInput(f"the terminal {term!r} is not known here", hint="try: TERM=xterm mosmon") from e
    locale.setlocale(locale.LC_ALL, "")
    os.environ.setdefault("ESCDELAY", "25")  # nobody types escape sequences by hand
    model = Model(glyphs=glyphs(locale.nl_langinfo(locale.CODESET), term), root=os.geteuid() == 0)
    for key in keys:
        model.key(key)
    model.first = max(0, first - 1)
    feed = Feed()
    try:
        curses.wrapper(lambda window: Screen(window, model, feed).run())
    finally:
        feed.close()
    return 0
