"""mosmon in a lab node: a person moves a process with three keys."""

from __future__ import annotations

from typing import Any

from tests.cluster.helpers import screen_of, where


def test_a_process_is_moved_from_the_screen(lab: Any) -> None:
    pid = lab.spawn("n1", ["python3", "-S", "-c", "while True: pass"])
    lab.run("n1", ["mosctl", "lock", str(pid)], check=True)  # so that mosps knows it
    session = lab.pty("n1", ["mosmon"], env={"TERM": "screen"}, dimensions=(30, 120))
    until = screen_of(session, 120, 30)

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
