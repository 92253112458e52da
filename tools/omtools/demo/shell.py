"""An interactive shell on a terminal of a node, typed at as a person would."""

from __future__ import annotations

import os
import pty
import select
import termios
import time
from typing import Any

from mig.errors import MigError
from omtools.moslab import enter
from omtools.moslab.lab import Lab, Node

PROMPT = "$ "
_START_S = 20.0


class Shell:
    """bash; ``text`` is all that its terminal has shown so far, with the terminal's ``\\r\\n``."""

    def __init__(self, lab: Lab, node: Node, *, user: str, cwd: str) -> None:
        """Start it and wait for its prompt; raises :class:`MigError` when none comes."""
        env = enter.environment() | {"HOME": cwd, "PS1": PROMPT, "TERM": "dumb", "LC_ALL": "C"}
        # no line editing: what the terminal shows is then exactly what was typed and printed
        argv = ["/bin/bash", "--norc", "--noprofile", "--noediting", "-i"]
        self._bash = enter.Running(lab, node, argv, user=user, stdio=(), terminal=_terminal(), env=env, cwd=cwd)
        self.pid = self._bash.pid
        self.text = ""
        os.set_blocking(self._bash.master, False)
        deadline = time.monotonic() + _START_S
        while not self.text.endswith(PROMPT):
            if time.monotonic() > deadline:
                raise MigError(f"the shell in {node.name} shows no prompt", reasons=[self.text])
            select.select([self], [], [], 0.5)
            self.read()

    def fileno(self) -> int:
        """For select."""
        return self._bash.master

    def type(self, line: str) -> int:
        """Type a line; returns the place in ``text`` behind which its echo and output will be."""
        self.read()
        os.write(self._bash.master, line.encode() + b"\n")
        return len(self.text)

    def read(self) -> str:
        """What the terminal has shown since the last call."""
        new = bytearray()
        while True:
            try:
                data = os.read(self._bash.master, 1 << 16)
            except BlockingIOError:
                break
            except OSError:  # EIO: the shell has ended
                break
            if not data:
                break
            new += data
        text = new.decode(errors="replace")
        self.text += text
        return text

    def close(self) -> None:
        """Hang up."""
        self._bash.close()


def _terminal() -> dict[str, Any]:
    """A description of a terminal as the kernel makes them, for :class:`enter.Running`."""
    master, slave = pty.openpty()
    modes = termios.tcgetattr(slave)
    os.close(master)
    os.close(slave)
    flags = [*modes[:6], [c if isinstance(c, int) else c[0] for c in modes[6]]]
    return {"tty": [0, 1, 2], "winsize": [24, 0, 80, 0, 0, 0, 0, 0], "termios": flags}
