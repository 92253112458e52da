"""Starts agents and keepers as processes of their own: new sessions, not killed with omdiscd, their words in log files."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack

from mig import paths
from mig.errors import MoveFailed
from mig.model import NodeInfo
from omdiscd.guests import Guests, Link
from omdiscd.nursery import Nursery

log = logging.getLogger(__name__)

START = 20.0
"""Seconds that an agent gets to appear: it imports Python modules, on a machine that may be busy."""
_TAIL = 2000
"""Bytes of a log that are quoted when a helper fails to start."""


class Spawner:
    """Starts helpers and reaps them."""

    def __init__(self, me: Callable[[], NodeInfo], guests: Guests, *, faults: bool = False) -> None:
        self._me, self._guests = me, guests
        self._faults = {"MIG_FAULTS": "1"} if faults else {}
        self.nursery = Nursery(self._status)
        self.pids: set[int] = set()
        """Helpers that live."""
        self._names: dict[int, str] = {}
        self._agents: dict[int, int] = {}  # by the pid that they serve

    async def agent(self, pid: int) -> Link:
        """The home agent of process ``pid``: the one that serves it, or a new one.  Raises :class:`MoveFailed` when it does not start."""
        if link := self._guests.agent(pid):
            return link
        logfile = paths.LOGS / f"agent-{pid}.log"
        child = self._agents[pid] = self.start("mig.agent.main", ["--pid", str(pid)], logfile)
        deadline = asyncio.get_running_loop().time() + START
        while asyncio.get_running_loop().time() < deadline:
            if link := self._guests.agent(pid):
                await asyncio.wait_for(link.known.wait(), START)
                return link
            if child not in self.pids:
                break
            self._guests.look()
            await asyncio.sleep(0.01)
        raise MoveFailed(
            f"the home agent of process {pid} did not start; the process was not touched",
            reasons=_tail(logfile),
            hint=f"its log is {logfile}",
        )

    def starting(self, pid: int) -> bool:
        """Whether an agent that we started for ``pid`` lives."""
        return self._agents.get(pid) in self.pids

    def keeper(self, conn: socket.socket, request: dict[str, Any]) -> int:
        """Hand a source's connection and its request to a new keeper; returns its pid.  Our copy of ``conn`` may be closed then."""
        fd = os.memfd_create("mig-request", os.MFD_CLOEXEC)
        try:
            os.write(fd, msgpack.packb(request, use_bin_type=True))
            os.lseek(fd, 0, os.SEEK_SET)
            args = ["--conn", str(conn.fileno()), "--request", str(fd)]
            facts = request.get("facts") or {}
            name = f"keeper-{(request.get('home') or {}).get('id', 0)}-{facts.get('pid', 0)}.log"
            return self.start("mig.cell.keeper", args, paths.LOGS / name, (conn.fileno(), fd))
        finally:
            os.close(fd)

    def start(self, module: str, args: list[str], logfile: Path, fds: tuple[int, ...] = ()) -> int:
        """Start a helper module of ours; returns its pid.  Our copies of ``fds`` may be closed then."""
        env = {**os.environ, "MIG_NODE": json.dumps(dataclasses.asdict(self._me())), **self._faults}
        env.pop("NOTIFY_SOCKET", None)  # it is omdiscd that is ready, not its helpers
        with open(logfile, "ab") as out:
            if (forked := self.nursery.fork(module, args, fds, env, out.fileno())) is not None:
                pid, pidfd = forked
                child = None
            else:
                command = [sys.executable, "-m", module, *args]
                child = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env, cwd="/", pass_fds=fds, start_new_session=True
                )
                pid, pidfd = child.pid, os.pidfd_open(child.pid)
        self.pids.add(pid)
        self._names[pid] = " ".join([module, *args[:2]])
        asyncio.get_running_loop().add_reader(pidfd, self._ended, pidfd, pid, child)
        return pid

    def _ended(self, pidfd: int, pid: int, child: subprocess.Popen[bytes] | None) -> None:
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)
        self.pids.discard(pid)
        if child is not None:
            self._status(pid, child.wait())

    def _status(self, pid: int, status: int) -> None:
        log.info("helper %d (%s) ended with status %d", pid, self._names.pop(pid, "?"), status)


def _tail(logfile: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return logfile.read_bytes()[-_TAIL:].decode(errors="replace").strip().splitlines()[-3:]
    return []
