"""A guest that tells who it is.  ``cell_guest.py IN OUT [threads] [children]``: orders by line from descriptor IN, answers to OUT."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading


def numbers(pid: int) -> list[int]:
    """pid, ppid, pgid, sid."""
    with open(f"/proc/{pid}/stat") as f:
        after = f.read().rpartition(")")[2].split()
    return [pid, int(after[1]), int(after[2]), int(after[3])]


def ids(terminal: int, children: list[int]) -> dict[str, object]:
    """All that must be as at home."""
    tty = group = None
    if os.isatty(terminal):
        tty = os.ttyname(terminal)
        try:
            group = os.tcgetpgrp(terminal)
        except OSError:
            group = -1
    return {
        "pid": os.getpid(), "ppid": os.getppid(), "pgid": os.getpgrp(), "sid": os.getsid(0), "host": socket.gethostname(),
        "cwd": os.getcwd(), "uid": os.getuid(), "tty": tty, "tpgid": group, "tids": sorted(map(int, os.listdir("/proc/self/task"))),
        "children": [numbers(c) for c in children],
    }  # fmt: skip


def child() -> int:
    """A child in a group of its own, with a child of its own."""
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        grandchild = os.fork()
        if grandchild == 0:
            threading.Event().wait()
        os.waitpid(grandchild, 0)
        os._exit(0)
    return pid


def main() -> None:
    """Obey until told to exit."""
    orders, out = os.fdopen(int(sys.argv[1]), "rb", buffering=0), int(sys.argv[2])
    children: list[int] = []
    if "children" in sys.argv:
        children = [child(), child()]
    for _ in range(3 if "threads" in sys.argv else 0):
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    os.write(out, json.dumps({"ready": os.getpid()}).encode() + b"\n")
    while True:
        word, *rest = orders.readline().split() or [b"exit", b"0"]
        if word == b"exit":
            os._exit(int(rest[0]))
        if word == b"ids":
            answer: dict[str, object] = ids(orders.fileno(), children)
        elif word == b"fork":
            children.append(child())
            answer = {"forked": len(children)}
        elif word == b"kill0":
            os.kill(0, int(rest[0]))
            answer = {"killed": 0}
        elif word == b"spin":
            answer = {"spun": sum(range(10**7))}
        else:
            answer = {"error": word.decode()}
        os.write(out, json.dumps(answer).encode() + b"\n")


main()
