"""The lab's network: a bridge in a network namespace of its own (the switch), and a veth pair for each node.

The machine's own interfaces are never touched, and removing the switch removes everything.  A node's port in the switch has the node's
name; inside the node the interface is eth0.  MAC addresses are fixed, so that peers find a restarted node without a stale ARP entry.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from mig.errors import MigError
from mig.kernel import libc

from .lab import Lab, Node

BRIDGE = "br0"
_QUEUE_MS = 20
_TIMER_HZ = 250  # a token bucket must hold what the rate gives in a timer tick, and one offloaded packet of 64 KiB


def _commands(namespace: Path, tool: str, lines: list[str], *, force: bool = False) -> None:
    """Run a batch of ``ip`` or ``tc`` lines in a network namespace; raises :class:`MigError` quoting the tool."""
    argv = ["nsenter", f"--net={namespace}", tool, *(["-force"] if force else []), "-batch", "-"]
    try:
        r = subprocess.run(argv, input="\n".join(lines) + "\n", capture_output=True, text=True)
    except FileNotFoundError as e:
        raise MigError(f"{e.filename} is not installed", hint="Debian packages: iproute2, util-linux") from e
    if r.returncode and not force:
        raise MigError(f"{tool} failed in the lab's network", reasons=r.stderr.strip().splitlines())


def make_switch(lab: Lab) -> None:
    """Create the namespace with the bridge, held open by a bind mount at ``lab.switch``."""
    lab.switch.touch()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            libc.unshare(libc.CLONE_NEWNET)
            libc.mount("/proc/self/ns/net", lab.switch, None, libc.MS_BIND)
            status = 0
        finally:
            os._exit(status)
    if os.waitpid(pid, 0)[1]:
        raise MigError("cannot make a network namespace")
    # no spanning tree and no IGMP snooping: a port forwards at once, and multicast needs no querier
    _commands(lab.switch, "ip", [f"link add {BRIDGE} type bridge stp_state 0 forward_delay 0 mcast_snooping 0", f"link set {BRIDGE} up"])


def plug(lab: Lab, node: Node, pid: int) -> None:
    """Connect the node whose pid 1 is ``pid``: make the pair, set addresses, bring both ends up, shape them."""
    inside = Path(f"/proc/{pid}/ns/net")
    unplug(lab, node)
    _commands(
        lab.switch,
        "ip",
        [
            f"link add {node.name} type veth peer name eth0 address {node.mac} netns {pid}",
            f"link set {node.name} master {BRIDGE} up",
        ],
    )
    _commands(
        inside,
        "ip",
        ["link set lo up", f"addr add {node.addr}/24 brd + dev eth0", "link set eth0 up", "route add 224.0.0.0/4 dev eth0"],
    )
    if lab.link:
        burst = max(1 << 17, lab.link // 8 // _TIMER_HZ * 2)
        shape = f"root tbf rate {lab.link}bit burst {burst}b latency {_QUEUE_MS}ms"
        try:
            _commands(lab.switch, "tc", [f"qdisc add dev {node.name} {shape}"])
            _commands(inside, "tc", [f"qdisc add dev eth0 {shape}"])
        except MigError as e:
            e.hint = "--link needs tc and the kernel's token bucket filter (sch_tbf)"
            raise


def unplug(lab: Lab, node: Node) -> None:
    """Remove the node's port, if there is one: nothing of the node, not even a FIN, gets out any more."""
    _commands(lab.switch, "ip", [f"link del {node.name}"], force=True)


def cut(lab: Lab, node: Node) -> None:
    """Take the node's port off the bridge: packets vanish, and the node sees its carrier all the time."""
    _commands(lab.switch, "ip", [f"link set {node.name} nomaster"])


def heal(lab: Lab, node: Node) -> None:
    """The inverse of :func:`cut`; harmless on a whole link."""
    _commands(lab.switch, "ip", [f"link set {node.name} master {BRIDGE}"])
