"""The process that is moved, and what it tells of itself."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from mig.errors import MigError

_SOURCE = Path(__file__).with_name("target.c")
_POLL = 0.01
START = 60.0
"""Seconds that a target gets to fill its memory, and any step of a peer to end: far more than it takes on a busy machine."""


def build(directory: Path) -> Path:
    """Compile the target; static, so that it runs in an empty root directory.  Raises :class:`MigError` with the compiler's words."""
    program = directory / "target"
    try:
        done = subprocess.run(["gcc", "-O2", "-static", "-o", program, _SOURCE], capture_output=True, text=True)
    except FileNotFoundError:
        raise MigError("there is no C compiler", hint="run `make env`") from None
    if done.returncode:
        raise MigError("the benchmark's target does not compile", reasons=done.stderr.splitlines())
    return program


def answers(text: str) -> list[float]:
    """The gaps in what a target wrote, in ms; an unfinished last line does not count."""
    return [float(line.split()[1]) for line in text[: text.rfind("\n") + 1].splitlines() if line.startswith("longest ")]


def steps(text: str) -> int:
    """The work done up to the last answer of a target."""
    done = [int(line.split()[1]) for line in text[: text.rfind("\n") + 1].splitlines() if line.startswith("steps ")]
    return done[-1] if done else 0


class Diary:
    """What one target writes, as seen from outside.  ``signal`` sends it SIGUSR1, on which it tells its longest gap."""

    def __init__(self, path: Path, signal: Callable[[], None]) -> None:
        self.path, self.signal = path, signal
        self._asked = 0

    def wait_ready(self) -> None:
        """Until it works; raises :class:`MigError`."""
        self._wait(lambda: "ready\n" in self._text())

    def longest(self) -> float:
        """The longest gap since this was asked last, in ms; raises :class:`MigError` when the target does not go on."""
        self._asked += 1
        try:
            self.signal()
        except ProcessLookupError as e:
            raise MigError("the benchmark's target has ended") from e
        self._wait(lambda: len(answers(self._text())) >= self._asked)
        return answers(self._text())[-1]

    def steps(self) -> int:
        """The work done up to the last :meth:`longest`."""
        return steps(self._text())

    def _wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START
        while not condition():
            if time.monotonic() > deadline:
                raise MigError(f"the benchmark's target has not written to {self.path} for {START:g} s")
            time.sleep(_POLL)

    def _text(self) -> str:
        try:
            return self.path.read_text()
        except FileNotFoundError:
            return ""
