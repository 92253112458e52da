"""What the demonstration prints: plain ASCII, at most 79 columns, one line at a time, so that it reads the same in a file."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from omtools.demo.pool import Move

WIDTH = 79
INDENT = " " * 8


def say(text: str = "") -> None:
    """A line, now."""
    print(text.encode("ascii", "replace").decode(), flush=True)


def paragraph(text: str, *, indent: str = "") -> None:
    """Wrapped text."""
    say(textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent))


def title(text: str) -> None:
    """The beginning of a part."""
    say(f"\n== {text} {'=' * max(0, WIDTH - 4 - len(text))}")


def clock(seconds: float) -> str:
    """Time since the jobs' start, as the left column."""
    return f"{seconds:3.0f} s"


def places(seconds: float, nodes: Sequence[str], where: Mapping[str, str]) -> None:
    """A line of the table: what runs on which node.  ``where``: node by job."""
    cells = [" ".join(job for job, node in where.items() if node == n) or "-" for n in nodes]
    say(f"{clock(seconds)} | " + " | ".join(f"{c:<22}" for c in cells).rstrip())


def places_header(nodes: Sequence[str], home: str) -> None:
    """The head of that table."""
    names = [f"{n} (home)" if n == home else n for n in nodes]
    say(" time | " + " | ".join(f"{n:<22}" for n in names).rstrip())
    say(("------+-" + "-+-".join("-" * 22 for _ in names))[:WIDTH])


def move(seconds: float, job: str, m: Move) -> None:
    """A move of the balancer with its pause and its reason, or a move that failed."""
    if not m.arrived:
        say(f"{clock(seconds)} ! {job} did not go from {m.source} to {m.target}: {m.outcome}")
        paragraph(m.error or "no reason given", indent=INDENT)
        return
    say(f"{clock(seconds)} > {job} moved {m.source} -> {m.target}: it stood still for {duration(m.pause_ms)}, {size(m.size)} sent")
    paragraph(f"by the balancer, because: {m.reason}", indent=INDENT)


def duration(ms: float) -> str:
    """A pause."""
    return f"{ms:.0f} ms" if ms < 1000 else f"{ms / 1000:.1f} s"


def size(n: int) -> str:
    """Bytes."""
    return f"{n / 1e6:.1f} MB" if n >= 1e6 else f"{n / 1e3:.0f} KB"
