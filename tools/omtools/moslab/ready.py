"""Waiting until the daemons of a lab see each other."""

from __future__ import annotations

import time
from pathlib import Path

from mig.errors import MigError
from omtools.client import Client, Lost

from . import enter, init
from .lab import Lab, Node
from .power import is_on

TIMEOUT_S = 30.0
POLL_S = 0.05
CONTROL = "run/mig/control.sock"
"""mig.paths.CONTROL in a node, whatever $MIG_RUN says on the machine."""
_LOG_LINES = 5


def wait(lab: Lab, nodes: list[Node]) -> None:
    """Until every one of ``nodes`` lists all of them as alive; raises :class:`MigError` when an omdiscd has ended, or after 30 s."""
    names = {n.name for n in nodes}
    waiting = {n.name: n for n in nodes}
    deadline = time.monotonic() + TIMEOUT_S
    while waiting:
        for node in list(waiting.values()):
            if names <= seen_alive(lab, node):
                del waiting[node.name]
            elif not enter.daemon_pid(lab, node):
                raise MigError(f"omdiscd of {node.name} has ended", reasons=log_end(lab, node))
            elif time.monotonic() > deadline:
                missing = ", ".join(sorted(names - seen_alive(lab, node)))
                raise MigError(f"after {TIMEOUT_S:g} s {node.name} does not see {missing}", reasons=log_end(lab, node))
        if waiting:
            time.sleep(POLL_S)


def wait_for_restarted(lab: Lab, node: Node) -> None:
    """As :func:`wait`, for a node that came back among others of which some may be off, cut off, or without a daemon."""
    wait(lab, [n for n in lab.nodes if n is node or (is_on(lab, n) and not lab.cut_file(n).exists() and enter.daemon_pid(lab, n))])


def seen_alive(lab: Lab, node: Node) -> set[str]:
    """Names of the nodes that this node's omdiscd lists as alive; empty while it does not answer."""
    try:
        with Client(tree(lab, node) / CONTROL) as client:
            reply = client.call("status")
    except (MigError, Lost):
        return set()
    return {str(row["name"]) for row in reply["nodes"] if row["state"] == "alive"}


def tree(lab: Lab, node: Node) -> Path:
    """The node's root directory as the machine can reach it; raises :class:`MigError` when the node is off."""
    try:
        return Path(f"/proc/{int(lab.pid_file(node).read_text())}/root")
    except FileNotFoundError:
        raise MigError(f"{node.name} is off") from None


def log_end(lab: Lab, node: Node) -> list[str]:
    """The last lines that the node's omdiscd wrote."""
    return (tree(lab, node) / init.STATE[1:] / "omdiscd.log").read_text(errors="replace").splitlines()[-_LOG_LINES:]
