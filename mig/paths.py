"""Where things lie: run-time directories, and the helpers that ``make env`` put beside the interpreter."""

from __future__ import annotations

import os
import sys
from pathlib import Path

RUN = Path(os.environ.get("MIG_RUN", "/run/mig"))
"""Run-time state of this node; a tmpfs in practice, so it ends with the boot, as the processes it describes do."""

STATE = Path(os.environ.get("MIG_STATE") or (RUN / "state" if "MIG_RUN" in os.environ else "/var/lib/mig"))
"""What this node keeps over boots."""

CONTROL = RUN / "control.sock"
"""omdiscd's control socket (ZMQ ipc)."""
AGENTS = RUN / "agents"
"""``<home pid>.sock``: one home agent each."""
KEEPERS = RUN / "keepers"
"""``<home node id>-<home pid>-<epoch>.sock``: one keeper each."""
JOURNAL = RUN / "journal"
"""One file per move and side (see mig.migration.journal)."""
WORK = RUN / "work"
"""Image directories and mount points, one directory per move and side."""
FAULTS = RUN / "faults"
"""Named fault points that are switched on (see mig.migration.faults)."""
OWN_SOCKETS = RUN / "own-sockets"
"""One file for each process whose named unix sockets are for its own tree (see mig.inspect.own_sockets)."""
LOGS = RUN / "log"
"""stderr of agents and keepers."""
TRUST = RUN / "trust"
"""This node's private key, and whose certificate is whose (mig.trust.store); for root alone."""

LOGINS = RUN / "logins"
"""mospam's notes: one file a session, named by the pid of the process that opened it (see mig/pam/mospam.c)."""
BELL = RUN / "bell.sock"
"""Where mospam tells omdiscd that a note has come or gone."""

CONFIG = Path(os.environ.get("MIG_CONFIG", "/etc/mig/omdiscd.toml"))
KEY = Path(os.environ.get("MIG_KEY", "/etc/mig/cluster.key"))

CELL = "mig-cell"
"""Name of the first process of a cell, which its guest sees as process 1."""


def in_cell() -> bool:
    """Whether this process is part of a guest that was moved, so that the omdiscd at that path is not its own (if it can reach one)."""
    try:
        with open("/proc/1/comm", encoding="utf-8") as f:
            return f.read().rstrip("\n") == CELL
    except OSError:
        return False


def libexec() -> Path:
    """The directory of compiled helpers and the private CRIU: ``$MIG_LIBEXEC`` or ``<venv>/libexec/mig``."""
    return Path(os.environ.get("MIG_LIBEXEC", os.path.join(sys.prefix, "libexec", "mig")))


def make_run_dirs() -> None:
    """Create the run-time tree, readable by all (sockets have their own modes), writable by root."""
    for d in (RUN, AGENTS, KEEPERS, JOURNAL, WORK, FAULTS, LOGS):
        d.mkdir(mode=0o755, parents=True, exist_ok=True)
    TRUST.mkdir(mode=0o700, exist_ok=True)
    LOGINS.mkdir(mode=0o700, exist_ok=True)
