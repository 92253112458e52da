"""Whether this node takes a guest in: every reason against it, from plain data."""

from __future__ import annotations

import ipaddress

from mig.config import Config
from mig.model import NodeInfo, ProcessFacts


def refusals(me: NodeInfo) -> list[str]:
    """Why this node takes in nobody at present; empty when it does."""
    return [] if me.accepting else [f"{me.name} does not accept guests: {me.why_not or 'blocked'}"]


def admit(
    facts: ProcessFacts, home: NodeInfo, me: NodeInfo, config: Config, *, hosted: int, reserved_mem: int, hosted_mem: int = 0
) -> list[str]:
    """Every reason to refuse the process of ``facts``.  One whose home is here is always taken back.

    ``hosted``, ``hosted_mem``: guests that are here, and their memory; ``reserved_mem``: bytes promised to others or on their way.
    """
    if home.id == me.id:
        return []
    out = refusals(me)
    if config.allow_from and not any(is_named(home, who) for who in config.allow_from):
        out.append(f"{me.name} takes no process of {home.name} (allow_from: {', '.join(config.allow_from)})")
    users, groups = {facts.uid, *facts.uids}, {facts.gid, *facts.gids}
    for what, ids, (low, high) in (("user", users, config.allow_uids), ("group", groups, config.allow_gids)):
        if config.allow_root_guests:
            continue  # a root guest could become any user: keeping the others out would protect nothing
        for i in sorted(ids):
            if not low <= i <= high:
                hint = "; allow_root_guests would let it in" if i == 0 else ""
                out.append(f"{me.name} takes no process of {what} {i} (allowed: {low} to {high}{hint})")
    if facts.privileges and 0 not in users and not config.allow_root_guests:
        what = "; ".join(facts.privileges[:3]) + (f"; and {len(facts.privileges) - 3} more" if len(facts.privileges) > 3 else "")
        out.append(f"{me.name} takes no process with privileges ({what}): start it without, or set allow_root_guests there")
    if hosted >= config.max_guests:
        out.append(f"{me.name} has {hosted} guests already (max_guests)")
    free = me.mem_free - reserved_mem - config.mem_reserve
    if me.mem_total and facts.rss > free:
        out.append(f"{me.name} has {max(0, free) >> 20} MiB of memory to give, the process needs {facts.rss >> 20} MiB")
    if config.max_memory and hosted_mem + reserved_mem + facts.rss > config.max_memory:
        left = max(0, config.max_memory - hosted_mem - reserved_mem)
        out.append(f"{me.name} has {left >> 20} MiB left for guests (max_memory), the process needs {facts.rss >> 20} MiB")
    return out


def is_named(node: NodeInfo, who: str) -> bool:
    """Whether ``who`` (an entry of ``allow_from``) names ``node``."""
    if who in (node.name, str(node.id), node.addr):
        return True
    try:
        return "/" in who and ipaddress.ip_address(node.addr) in ipaddress.ip_network(who, strict=False)
    except ValueError:
        return False
