"""``python -m omdiscd.holder --pid P --cgroup DIR --fd N``: lets a job stand still at the start of its program (``mosrun -b``).

Says ``R`` on the socket when the job may exec, ``H`` when it stands frozen there, ``E`` and a text when it cannot.  Then it waits: ``D``
means that an agent has taken over; an end of the stream before that means that omdiscd died, and the job is let go so that it runs at
home.
"""

from __future__ import annotations

import argparse
import socket
import sys
from pathlib import Path

from mig.deputy.hold_at_exec import hold_at_exec
from mig.kernel import cgroup
from mig.kernel.cgroup import Cgroup


def release(group: Cgroup, back: Path) -> None:
    """Thaw the job and give it back to the cgroup that it came from."""
    if not group.exists():
        return
    group.thaw()
    home = Cgroup(back)
    for p in group.procs():
        try:
            (home if home.exists() else Cgroup(cgroup.root())).add(p)
        except ProcessLookupError:
            continue  # ended meanwhile
    group.remove()


def main() -> int:
    """Hold one job."""
    p = argparse.ArgumentParser(prog="omdiscd-holder", description="holds a job at its exec (started by omdiscd)")
    p.add_argument("--pid", type=int, required=True)
    p.add_argument("--cgroup", type=Path, required=True, help="a cgroup of its own for the job")
    p.add_argument("--fd", type=int, required=True, help="stream socket to omdiscd")
    a = p.parse_args()
    group = Cgroup(a.cgroup)
    with socket.socket(fileno=a.fd) as s:
        try:
            back = cgroup.of(a.pid)
            hold_at_exec(a.pid, group, lambda: s.sendall(b"R\n"))
            s.sendall(b"H\n")
        except Exception as e:  # whatever it was: the job must not stay frozen, and omdiscd must hear why
            if group.exists():
                release(group, cgroup.root())
            s.sendall(f"E{type(e).__name__}: {e}\n".encode())
            return 1
        if s.recv(1) != b"D":
            release(group, back)
    return 0


if __name__ == "__main__":
    sys.exit(main())
