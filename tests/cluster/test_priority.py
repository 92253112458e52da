"""Helpers stand back for the process that they move until it stands still, and for nobody from then on."""

from __future__ import annotations

from typing import Any

from tests.faults.conftest import Faults

from .helpers import servant, where


def nice(lab: Any, node: str, what: str) -> set[int]:
    """Nice values of a node's helpers whose command line has ``what`` in it."""
    lines = lab.run(node, "ps -eo ni=,args=", check=True).stdout.splitlines()
    return {int(line.split()[0]) for line in lines if f"-m mig.{what}" in line}


def test_helpers_are_ordinary_while_the_process_runs_and_high_from_the_freeze_on(lab: Any) -> None:
    faults = Faults(lab)
    with servant(lab) as s:
        own = s.ask("os.getpriority(os.PRIO_PROCESS, 0)")
        s.do("block = os.urandom(32 << 20)")  # so that it has a page source and a pager
        faults.set("n1", "before_freeze", "hang")
        migrate = lab.spawn("n1", ["migrate", str(s.pid), "n2"])
        faults.wait("n1", "before_freeze")
        helpers = [
            ("n1", "agent.main"),
            ("n1", "criu.dump_helper"),
            ("n1", "memory.source_main"),
            ("n2", "cell.keeper"),
            ("n2", "memory.pager_main"),
        ]
        before = {x: nice(lab, *x) for x in helpers}
        faults.clear("n1", "before_freeze")
        lab.wait_for(lambda: where(lab, s.pid) == "n2" and not lab.alive("n1", migrate), what="it has arrived")
        assert before == {x: {0} for x in helpers}
        assert nice(lab, "n1", "agent.main") == {-10}
        assert nice(lab, "n2", "cell.keeper") <= {-10, 0} and -10 in nice(lab, "n2", "cell.keeper"), (
            "what only waits for the cell's end is 0"
        )
        assert s.ask("os.getpriority(os.PRIO_PROCESS, 0)") == own, "a guest keeps its own"
        assert s.end() == 0
