"""What omdiscd knows about its own state, for ``mosctl doctor``: each line with its remedy."""

from __future__ import annotations

import stat
from dataclasses import dataclass

from mig import paths
from mig.config import Config
from omdiscd.discovery import Discovery
from omdiscd.targets import Targets


@dataclass(frozen=True)
class Check:
    """One line: what was looked at, whether it is well, what was seen, what to do."""

    name: str
    ok: bool
    text: str
    remedy: str = ""


def checks(config: Config, targets: Targets, discovery: Discovery) -> list[Check]:
    """All lines."""
    me = targets.me()
    others = [n for n in targets.nodes() if n.id != me.id]
    alive = [n for n in others if n.state == "alive"]
    out = [Check("daemon", True, f"omdiscd {me.version} is {me.name}, id {me.id}, on {me.addr} port {me.port}")]
    out.append(_key())
    heard = f"{len(alive)} of {len(others)} known nodes are alive"
    out.append(Check("peers", bool(alive), heard, "" if alive else "start omdiscd elsewhere with the same key, or set seeds"))
    if config.multicast and discovery.interfaces:
        heard = f"{discovery.multicast_heard} hellos heard on {', '.join(discovery.interfaces)}"
        out.append(
            Check("multicast", discovery.multicast_heard > 0 or not others, heard, "multicast seems blocked: set seeds on this node")
        )
    if discovery.rejected:
        out.append(
            Check(
                "datagrams", False, f"{discovery.rejected} datagrams were not sealed with our key, or repeated", "compare the cluster keys"
            )
        )
    if discovery.members.clash:
        out.append(
            Check("id", False, f"node {discovery.members.clash} has our id {me.id}", "give one of the two another id in its configuration")
        )
    out.append(Check("guests", me.accepting, "guests are accepted" if me.accepting else f"no guests: {me.why_not}", "mosctl noblock"))
    return out


def _key() -> Check:
    remedy = "mosctl key new on one node, then on it: mosctl key show | ssh NODE mosctl key install, for each other node"
    try:
        mode = stat.S_IMODE(paths.KEY.stat().st_mode)
    except FileNotFoundError:
        return Check("key", False, f"there is no cluster key {paths.KEY}: this node speaks with nobody", remedy)
    return Check("key", not mode & 0o077, f"cluster key {paths.KEY}, mode {mode:o}", f"chmod 600 {paths.KEY}")
