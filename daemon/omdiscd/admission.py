"""Whether this node takes a guest in: every reason against it, from plain data."""

from __future__ import annotations

from mig.config import Config
from mig.model import NodeInfo, ProcessFacts


def refusals(me: NodeInfo) -> list[str]:
    """Why this node takes in nobody at present; empty when it does."""
    return [] if me.accepting else [f"{me.name} does not accept guests: {me.why_not or 'blocked'}"]


def admit(facts: ProcessFacts, home: NodeInfo, me: NodeInfo, config: Config, *, hosted: int, reserved_mem: int) -> list[str]:
    """Every reason to refuse the process of ``facts``.  One whose home is here is always taken back."""
    if home.id == me.id:
        return []
    out = refusals(me)
    for what, ids, (low, high) in (("user", facts.uids or [facts.uid], config.uids), ("group", facts.gids or [facts.gid], config.gids)):
        if config.allow_root_guests:
            continue  # a root guest could become any user: keeping the others out would protect nothing
        for i in sorted(set(ids)):
            if not low <= i <= high:
                hint = "; allow_root_guests would let it in" if i == 0 else ""
                out.append(f"{me.name} takes no process of {what} {i} (allowed: {low} to {high}{hint})")
    if hosted >= config.max_guests:
        out.append(f"{me.name} has {hosted} guests already (max_guests)")
    free = me.mem_free - reserved_mem - config.mem_reserve
    if me.mem_total and facts.rss > free:
        out.append(f"{me.name} has {max(0, free) >> 20} MiB of memory to give, the process needs {facts.rss >> 20} MiB")
    return out
