"""What README.md and quickstart.md show is what a shell in a node shows: their sessions are typed again, line by line."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

ROOT = Path(__file__).parents[2]
PROMPT = "next> "
TYPED = {"hello"}
"""Lines of a session that are typed into a program."""


def sessions(page: str) -> dict[str, list[tuple[str, list[str]]]]:
    """By heading: what is typed at the prompt of a node, each with the lines that follow it."""
    found: dict[str, list[tuple[str, list[str]]]] = {}
    heading, inside = "", False
    for line in (ROOT / page).read_text().splitlines():
        if line.startswith("```"):
            inside = False
        elif line.startswith("## "):
            heading = line[3:]
        elif m := re.match(r"root@n1:~# (.+)", line):
            inside = True
            found.setdefault(heading, []).append((m[1], []))
        elif line.startswith("# "):
            inside = False
        elif inside:
            found[heading][-1][1].append(line)
    return found


def shape(line: str) -> str:
    """What is left of a line on a terminal, without what differs each time: numbers, sizes, times, blanks.  An exit status stays."""
    line = line.rpartition("\x1b[K")[2].replace("\r", "")  # progress that was wiped out
    if line.strip().isdigit():
        return line.strip()
    return re.sub(r"\s+", " ", re.sub(r"\d[\d.,:]*(?: m?s|[KMGT])?\b", "#", line)).strip()


def compare(expected: list[str], shown: list[str]) -> None:
    """All lines of the page are there, in its order; others may be between them, ``…`` stands for anything."""
    rest = iter(shown)
    for line in expected:
        if line == "…":
            continue
        pattern = re.compile(".*".join(map(re.escape, shape(line).split("…"))))
        assert any(pattern.fullmatch(x) for x in rest), "\n".join([f"not there, or not in this order: {shape(line)}", "", *shown])


@pytest.fixture
def shell(lab: Any) -> Iterator[Any]:
    """An interactive shell in n1, which echoes nothing."""
    s = lab.pty("n1", ["bash", "--norc"], env={"PS1": PROMPT, "TERM": "dumb"}, dimensions=(50, 500))
    s.expect_exact(PROMPT, timeout=30)
    s.sendline("stty -echo; cd $(mktemp -d)")
    s.expect_exact(PROMPT, timeout=30)
    yield s
    s.sendline("kill $(jobs -p); exit")
    s.expect(pexpect.EOF, timeout=30)


def type_all(s: Any, lines: list[tuple[str, list[str]]]) -> None:
    """Type a session and compare what comes."""
    shown: list[str] = []
    for command, follows in lines:
        s.sendline(command)
        for word in TYPED & set(follows):
            s.expect_exact(shape(follows[0]).split("#")[0])  # the program is there
            shown.append(shape(follows[0]))
            time.sleep(0.5)
            s.sendline(word)
        s.expect_exact(PROMPT, timeout=300)
        shown += [shape(x) for x in s.before.split("\r\n")]
        time.sleep(1)  # a person's
    compare([x for _, follows in lines for x in follows if x not in TYPED], [x for x in shown if x])


@pytest.mark.parametrize("heading", ["3. Move a background job", "4. A job in the foreground", "6. What cannot move", "7. Break something"])
def test_quickstart(lab: Any, shell: Any, heading: str) -> None:
    (lines,) = [v for k, v in sessions("docs/quickstart.md").items() if k.startswith(heading)]
    try:
        type_all(shell, [x for x in lines if x[0] != "exit"])
    finally:
        if heading.startswith("7"):
            lab.restart_daemon("n1")


def test_readme(shell: Any) -> None:
    type_all(shell, sessions("README.md")["A session"])
