"""mosmon in a lab node: a person moves a process with three keys."""

from __future__ import annotations

import time
from typing import Any

import pyte

from tests.cluster.helpers import where


def test_a_process_is_moved_from_the_screen(lab: Any) -> None:
    pid = lab.spawn("n1", ["python3", "-S", "-c", "while True: pass"])
    lab.run("n1", ["mosctl", "lock", str(pid)], check=True)  # so that mosps knows it
    session = lab.pty("n1", ["mosmon"], env={"TERM": "screen"}, dimensions=(30, 120))
    screen = pyte.Screen(120, 30)
    stream = pyte.Stream(screen)

    def until(text: str) -> None:
        end = time.monotonic() + 30
        while not any(text in line for line in screen.display):
            assert time.monotonic() < end, "\n".join([f"never seen: {text}", *screen.display])
            stream.feed(session.read_nonblocking(65536, timeout=30))

    until("3 of 3 nodes up")
    session.send("p")
    until("WHY IT STAYS")
    session.send("/python")
    session.send("\r")
    until("locked")
    session.send("\rn2\r")
    until("moved to n2, paused")
    assert where(lab, pid) == "n2"
    session.send("e")
    until("arrived n1 -> n2")
    session.send("H")  # no meaning among events
    session.send("p")
    until("WHY IT STAYS")
    session.send("H")
    until("moved to home, paused")
    session.send("q")
    session.expect("$")
