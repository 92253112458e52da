"""``python -m mig.agent.main --pid P``: the home agent of process P, started by omdiscd; ``MIG_NODE`` holds this node as JSON."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys

from mig import logs, paths
from mig.errors import MigError
from mig.kernel import priority
from mig.kernel.cgroup import leave_unit
from mig.migration import faults
from mig.model import NodeInfo


def main() -> int:
    """Run one agent until its guest has ended, or recover the process of an agent that died in the middle of a first move."""
    p = argparse.ArgumentParser(prog="mig-agent", description="home agent of one guest (started by omdiscd)")
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument("--pid", type=int, help="the process to look after")
    what.add_argument("--recover", metavar="MOVE", help="a move that its agent left unfinished")
    p.add_argument("--faults", action="store_true", help="named fault points may be switched on (tests)")
    a = p.parse_args()
    logs.to_stderr(who=f"agent {a.pid}" if a.pid else "recovery")
    logs.about(a.recover or "")
    faults.enabled = a.faults or os.environ.get("MIG_FAULTS") == "1"
    leave_unit()
    if a.pid:
        priority.ordinary()
    paths.make_run_dirs()
    try:
        from mig.agent.recover import recover

        if a.recover:
            asyncio.run(recover(a.recover))
        else:
            from mig.agent.agent import Agent
            from mig.agent.recover import left_by_others

            for move in left_by_others(a.pid):
                asyncio.run(recover(move))  # an agent before us died in the middle of it
            node = NodeInfo.from_map(json.loads(os.environ["MIG_NODE"]))
            asyncio.run(Agent(a.pid, node).run())
    except MigError as e:
        print("\n".join(e.lines()), file=sys.stderr)
        return e.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
