"""``moslab run`` seen from the caller: its terminal is relayed to one of the node, its signals are passed on."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
import termios
import tty
from collections.abc import Sequence
from typing import Any

from . import enter
from .lab import Lab, Node

PASSED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGCONT)
FROM_KEYBOARD = (signal.SIGINT, signal.SIGQUIT)
_WINSIZE = struct.pack("HHHH", 24, 80, 0, 0)
_LAST_OUTPUT_S = 0.1


def run(lab: Lab, node: Node, argv: Sequence[str], *, user: str = "0") -> int:
    """Run a command in the node with our standard descriptors; returns its exit status as a shell gives it.

    Those of the three that are terminals become one terminal of the node, which is the command's controlling terminal.
    """
    ttys = [fd for fd in range(3) if os.isatty(fd)]
    typing = 0 in ttys and _in_foreground()
    modes = termios.tcgetattr(ttys[0]) if ttys else []
    wake_r, wake_w = os.pipe()
    os.set_blocking(wake_r, False)
    os.set_blocking(wake_w, False)
    for number in (*PASSED, signal.SIGWINCH):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(wake_w)
    command = enter.Running(lab, node, argv, user=user, terminal=_describe(ttys, modes, typing) if ttys else None)
    try:
        if typing:
            tty.setraw(0, termios.TCSADRAIN)
        _relay(command, wake_r, ttys, typing)
        return enter.exit_status(command.wait())
    finally:
        if typing:
            termios.tcsetattr(0, termios.TCSADRAIN, modes)
        command.close()


def _in_foreground() -> bool:
    """Whether we may read standard input, a terminal: touching it from the background would stop us."""
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return True  # not our controlling terminal: no job control on it


def _describe(ttys: list[int], modes: list[Any], typing: bool) -> dict[str, Any]:
    """What the node's terminal must be like.  Where we take no input from our own it stays cooked, and processes the output."""
    output = modes[1] if typing else modes[1] & ~termios.OPOST
    flags = [modes[0], output, *modes[2:6], [c if isinstance(c, int) else c[0] for c in modes[6]]]
    return {"tty": ttys, "winsize": list(_window_size(ttys[0])), "termios": flags}


def _window_size(fd: int) -> bytes:
    try:
        return fcntl.ioctl(fd, termios.TIOCGWINSZ, _WINSIZE)
    except OSError:
        return _WINSIZE  # the terminal has just been closed


def _relay(command: enter.Running, wake: int, ttys: list[int], typing: bool) -> None:
    """Pass input, output and signals until the command has ended and all its output is here."""
    out = 1 if 1 in ttys else ttys[-1] if ttys else -1
    sources = {wake, command.conn.fileno(), *([command.master] if ttys else []), *([0] if typing else [])}
    pending = b""
    ended = False
    while True:
        writable = [command.master] if pending and not ended else []
        readable, ready, _ = select.select([] if ended and not ttys else sources, writable, [], _LAST_OUTPUT_S if ended else None)
        if ended and command.master not in readable:
            return
        if wake in readable:
            for number in os.read(wake, 256):
                _signal(command, number, ttys)
        if command.master in readable:
            try:
                data = os.read(command.master, 1 << 16)
            except OSError:  # EIO: nobody has the terminal open in the node any more
                data = b""
            if not data:
                sources.discard(command.master)
            while data:
                data = data[os.write(out, data) :]
        if 0 in readable and 0 in sources:
            data = os.read(0, 4096)
            if not data:
                sources.discard(0)
            pending += data
        if ready:
            pending = pending[os.write(command.master, pending[:1024]) :]
        if command.conn.fileno() in readable:
            command.wait()
            ended = True
            sources &= {command.master}
            if not ttys:
                return


def _signal(command: enter.Running, number: int, ttys: list[int]) -> None:
    if number != signal.SIGWINCH:
        command.kill(number, group=number in FROM_KEYBOARD)
    elif command.master >= 0:
        fcntl.ioctl(command.master, termios.TIOCSWINSZ, _window_size(ttys[0]))
