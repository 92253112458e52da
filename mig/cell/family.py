"""Which processes stand in a cell for those that stay at home: parent, session leader, leaders of process groups.  No I/O.

CRIU gives the root of a restored tree the parent of CRIU itself (``rst_sibling``) and, for a shell job, CRIU's own session and process
group.  So CRIU must run as a child of a process with the pid of the guest's parent, in a session and a group with the right numbers,
and these exist only where a process with that very pid has made them.

A guest that leads its session itself gets its controlling terminal from CRIU, after its children were made: those that it has at that
moment are in the session, but without the terminal (the kernel hands it on at fork only).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from mig.cell.spec import CellError
from mig.model import ProcessFacts

SPAN = 64
"""Free pids wanted from the worker's on: CRIU makes some helpers of its own."""
RESERVED = 300
"""The kernel does not come back below this pid when it wraps round."""
COMMON_PID_MAX = 32768
"""The default of many systems; a pid above it could not be restored there, so it is not passed without need."""


@dataclass(frozen=True)
class Family:
    """The cast.  ``init`` is pid 1 of the cell and may play parent or leader itself.

    ``leader``: pid that leads the session (0: the guest does it itself, or nobody here).  ``parent``: pid of the guest's parent.
    ``leads_group``: whether the parent is to lead a process group.  ``joins``: the group that the parent joins (0: stays where it is).
    ``stand_ins``: further pids that lead a group.  ``group``: the group that CRIU joins (0: whatever its parent has).
    ``worker``: pid of CRIU.  ``background``: a group that can have the terminal while the guest has not (0: none known).
    """

    leader: int
    parent: int
    leads_group: bool
    joins: int
    stand_ins: tuple[int, ...]
    group: int
    worker: int
    background: int

    @property
    def host(self) -> int:
        """The pid, 1 for init, of the process that is in the session and makes the stand-ins and CRIU."""
        return self.parent if self.parent != 1 or self.leader in (0, 1) else self.leader


def plan(facts: ProcessFacts, pid_max: int) -> Family:
    """The cast for a guest; raises :class:`CellError` when a needed pid is out of reach."""
    tree = set(facts.tree) | {facts.pid}
    taken = tree | set(facts.tids)
    parent = facts.ppid if facts.ppid > 1 else 1
    leader = facts.sid if facts.sid > 0 and facts.sid != facts.pid else 0
    outer_group = facts.pgid if facts.pgid > 0 and facts.pgid not in tree else 0
    outer_foreground = facts.tpgid if leader and facts.tty_nr and facts.tpgid > 0 and facts.tpgid not in tree else 0
    groups = {g for g in (outer_group, outer_foreground) if g and g != leader}
    leads_group = parent in groups
    joins = outer_group if parent != 1 and parent != leader and not leads_group else 0
    stand_ins = tuple(sorted(groups - {parent, 1}))
    cast = {p for p in (leader, parent, *stand_ins) if p > 1}
    if clash := cast & taken:
        raise CellError("family", f"process {min(clash)} is wanted both for the guest and for a process at home")
    highest = max(cast | taken)
    if highest >= pid_max:
        raise CellError(
            "family",
            f"pid {highest} is out of reach: this node has kernel.pid_max {pid_max}",
            hint="raise it: sysctl kernel.pid_max=4194304",
        )
    own = facts.pgid
    background = next((g for g in (outer_foreground, leader) if g and g != own), 0)
    worker = free_span(cast | taken, min(pid_max, COMMON_PID_MAX) if highest < COMMON_PID_MAX - SPAN else pid_max)
    return Family(leader, parent, leads_group, joins, stand_ins, outer_group, worker, background)


def free_span(taken: set[int], limit: int) -> int:
    """The middle of the longest run of pids below ``limit`` that are not taken.

    Far from all others on both sides: the guest may still make threads at home, whose pids come right after the last ones there.
    """
    edges = [RESERVED, *sorted(p for p in taken if RESERVED < p < limit), limit]
    width, start = max((b - a, a) for a, b in pairwise(edges))
    if width < 2 * SPAN:
        raise CellError("family", f"no run of {2 * SPAN} free pids below {limit} is left for CRIU")
    return start + width // 2
