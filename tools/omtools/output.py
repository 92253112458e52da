"""What all tools have in common: exit codes, errors on stderr, JSON, tables that fit the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from mig.errors import BadInput, MigError, NoDaemon

if TYPE_CHECKING:
    import argparse

EXIT_CODES = """exit status:
  0 done   2 bad input   3 cannot move, every reason is listed   4 failed and rolled back   5 outcome unknown
  6 not permitted   7 no omdiscd answers on this machine"""

Column = tuple[str, str, Callable[[dict[str, Any]], str]]
"""Header, alignment (``<`` or ``>``), and the text of a row."""


def parser(prog: str, description: str, status: str = EXIT_CODES) -> argparse.ArgumentParser:
    """An argument parser with --version and, as the end of its help, what the exit status means; wrong usage exits with 2."""
    import argparse

    from mig import __version__

    class Formatter(argparse.RawDescriptionHelpFormatter):
        def _fill_text(self, text: str, width: int, indent: str) -> str:
            """Lines stay lines, those that are too long become several."""
            import textwrap

            lines = [textwrap.wrap(x, width, subsequent_indent=" " * (len(x) - len(x.lstrip()))) or [""] for x in text.splitlines()]
            return "\n".join(indent + part for line in lines for part in line)

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            super().error(_shorter(message))

    p = Parser(prog=prog, description=description, epilog=status, formatter_class=Formatter)
    p.add_argument("--version", action="version", version=f"{prog} {__version__}")
    return p


def _shorter(message: str) -> str:
    """argparse lists all choices of which a word is none; of many, the nearest are named."""
    import difflib
    import re

    m = re.fullmatch(r"argument [^:]+: invalid choice: '(.*)' \(choose from (.*)\)", message)
    choices = re.findall(r"[\w-]+", m[2]) if m else []
    if m is None or len(choices) < 8:
        return message
    near = " or ".join(difflib.get_close_matches(m[1], choices, 3, 0.5))
    return f"there is no {m[1]!r}; {f'did you mean {near}? ' if near else ''}--help lists all"


def process_number(text: str) -> int:
    """The type of a PID on the command line; 0 and less are left to the tool, which says it in JSON too."""
    import argparse

    try:
        return int(text)
    except ValueError:
        job = f"; for a job of the shell: $(jobs -p {text})" if text.startswith("%") else ""
        raise argparse.ArgumentTypeError(f"{text!r} is not the number of a process{job}") from None


def run(tool: Callable[[], int], prog: str, *, json: bool = False) -> int:
    """Run a tool's body and turn what it raises into its exit status and lines on stderr (with ``json``: an object on stdout too)."""
    from omtools.client import Lost

    try:
        try:
            return tool()
        except Lost as e:
            raise NoDaemon(f"the connection to omdiscd broke: {e}", hint="ask again; mosps tells what runs where") from e
        finally:
            sys.stdout.flush()
    except MigError as e:
        complain(e, prog)
        if json:
            print_json({"error": e.to_wire()})
        return e.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # the reader of our output has seen enough; Python must not complain about it at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141


def complain(e: MigError, prog: str) -> None:
    """An error as the user reads it."""
    lines = e.lines()
    print(f"{prog}: {lines[0]}", *lines[1:], sep="\n", file=sys.stderr)


def print_json(value: Any, *, line: bool = False) -> None:
    """JSON on stdout, indented, or one value a line for streams."""
    import json

    print(json.dumps(value, indent=None if line else 2, default=_plain), flush=line)


def _plain(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def no_such_node(name: str, known: Sequence[str]) -> NoReturn:
    """Raise :class:`BadInput` for a node that nobody knows."""
    raise BadInput(f"no node {name} is known here", hint=f"known: {', '.join(known) or 'none'}")


def table(rows: Sequence[dict[str, Any]], columns: Sequence[Column]) -> None:
    """Print rows in columns.  On a terminal they fit its width: long texts are cut, and then the last columns left out."""
    from omtools import tables

    cells = [[plain(text(r)) for _, _, text in columns] for r in rows]
    print(*tables.lines([head for head, _, _ in columns], [align for _, align, _ in columns], cells, _terminal_width()), sep="\n")


def plain(text: str) -> str:
    """Text that may come from anywhere, as a program's name does, without what would steer the terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def _terminal_width() -> int | None:
    try:
        return os.get_terminal_size(1).columns or None
    except OSError:
        return None  # not a terminal: whole lines, for other programs


def size(n: float) -> str:
    """Bytes for people: 640K, 1.5G."""
    for unit in ("B", "K", "M", "G"):
        if abs(n) < 1024:
            return f"{n:.0f}{unit}" if n >= 10 or unit == "B" else f"{n:.1f}{unit}"
        n /= 1024
    return f"{n:.1f}T"


def duration(seconds: float) -> str:
    """CPU time as ps writes it: 0:05, 12:07, 3:00:00."""
    minutes, s = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{s:02}" if hours else f"{minutes}:{s:02}"


def milliseconds(ms: float) -> str:
    """A time in words: 45 ms, 1.2 s."""
    return f"{ms:.0f} ms" if ms < 1000 else f"{ms / 1000:.1f} s"
