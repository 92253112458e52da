"""Jobs: processes that ``mosrun`` started.  Remembered in a file of the run-time directory, so that a restarted omdiscd knows them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

from mig import paths
from mig.errors import CannotMove, MigError, OutcomeUnknown
from mig.kernel import cgroup, procfs
from mig.kernel.cgroup import Cgroup
from mig.model import GuestState, Mapped, NodeInfo
from omdiscd.events import Events
from omdiscd.holder import release
from omdiscd.moves import Mover
from omdiscd.spawn import Spawner

log = logging.getLogger(__name__)

_ARM = 10.0
"""Seconds in which a holder must have attached to the job."""
_EXEC = 30.0
"""Seconds in which mosrun must have called exec."""


@dataclass
class Job(Mapped):
    """One job; ``nodes``: the only ones that it may run on, empty for any."""

    pid: int
    start: int
    uid: int
    comm: str = ""
    home: bool = False
    locked: bool = False
    placed: bool = False
    quiet: bool = False
    nodes: list[str] = field(default_factory=list)


class Jobs:
    """The table of jobs, and the start of those that go away before their first instruction."""

    def __init__(self, mover: Mover, spawner: Spawner, events: Events, me: Callable[[], NodeInfo]) -> None:
        self.mover, self.spawner, self.events, self._me = mover, spawner, events, me
        self.table: dict[int, Job] = {}
        self._file = paths.RUN / "jobs.json"
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def starting(self) -> int:
        """Jobs on their way to the node where they begin."""
        return len(self._tasks)

    def load(self) -> None:
        """Read what an earlier omdiscd of this boot knew."""
        with contextlib.suppress(FileNotFoundError):
            try:
                for m in json.loads(self._file.read_text()):
                    j = Job.from_map(m)
                    self.table[j.pid] = j
            except (ValueError, TypeError) as e:
                log.warning("%s is not readable, jobs of before are forgotten: %s", self._file, e)
        self.sweep()

    def sweep(self) -> None:
        """Forget jobs that have ended."""
        gone = [p for p, j in self.table.items() if not _runs(j)]
        for p in gone:
            del self.table[p]
        if gone:
            self._save()

    def _save(self) -> None:
        temporary = self._file.with_suffix(".new")
        temporary.write_text(json.dumps([dataclasses.asdict(j) for j in self.table.values()]))
        os.replace(temporary, self._file)

    def register(self, job: Job) -> None:
        """Add or replace a job."""
        self.table[job.pid] = job
        self._save()

    def changed(self) -> None:
        """A job's flags were changed."""
        self._save()

    def of(self, pid: int, ancestors: list[int]) -> Job | None:
        """The job to which a process belongs: itself or the nearest of its ancestors."""
        return next((self.table[p] for p in (pid, *ancestors) if p in self.table), None)

    def rows(self, known: set[int]) -> list[GuestState]:
        """Rows of the jobs that run here and have no agent (``known``: pids that have)."""
        me = self._me().name
        out = []
        for j in self.table.values():
            p = self.mover.sampler.table.processes.get(j.pid)
            if j.pid in known or p is None or p.start != j.start:
                continue
            state = "stopped" if p.state in "tT" else "running"
            out.append(
                GuestState("job", j.pid, me, me, state, 0, j.locked or j.home, [], p.cpu_s, p.rss, j.uid, p.comm, j.start, host_pid=j.pid)
            )
        return out

    # -- starting elsewhere -------------------------------------------------------------------------------------------------------

    async def hold(self, job: Job, to: NodeInfo) -> None:
        """Arm a holder for ``job``; returns when it may exec.  It then goes to ``to`` in the background.

        Raises :class:`CannotMove` when the holder cannot attach; the job then is as before.
        """
        group = cgroup.root() / f"mig-P{job.pid}"
        back = cgroup.of(job.pid)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            args = ["--pid", str(job.pid), "--cgroup", str(group), "--fd", str(theirs.fileno())]
            child = self.spawner.start("omdiscd.holder", args, paths.LOGS / f"holder-{job.pid}.log", (theirs.fileno(),))
        reader, writer = await asyncio.open_connection(sock=ours)
        try:
            await _expect(reader, b"R", _ARM)
        except MigError:
            writer.close()
            if child in self.spawner.pids:
                os.kill(child, signal.SIGKILL)  # it has not ended, so the pid is its own; the kernel detaches it from the job
            await asyncio.to_thread(release, Cgroup(group), back)
            raise
        task = asyncio.ensure_future(self._send_away(job, to, Cgroup(group), Cgroup(back), child, reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send_away(
        self, job: Job, to: NodeInfo, group: Cgroup, back: Cgroup, holder: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        given = False

        def hand_over() -> None:
            # before, the holder lets the job go when we die; afterwards the agent's journal says what may be done with it
            nonlocal given
            if not given:
                writer.write(b"D")
            given = True

        try:
            await _expect(reader, b"H", _EXEC)

            async def taken_over(step: str, text: str) -> None:
                hand_over()

            subject = self.mover.subject(job.pid)
            timeout = self.mover.targets.config.move_timeout_s
            await self.mover.move(
                subject, to, timeout=timeout, reason="mosrun chose its node", frozen=str(group.path), progress=taken_over
            )  # fmt: skip
            hand_over()
            log.info("job %d (%s) started on %s", job.pid, subject.comm, to.name)
        except OutcomeUnknown as e:
            hand_over()  # it must stay frozen: its copy may run
            log.error("job %d: %s", job.pid, e)
        except (MigError, OSError) as e:
            log.warning("job %d starts at home: %s", job.pid, e)
            reasons = "; ".join(getattr(e, "reasons", []))
            self.events.add("job", pid=job.pid, home=self._me().name, to=to.name, outcome="starts at home", reason=reasons or str(e))
            if holder in self.spawner.pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(holder, signal.SIGKILL)
            await asyncio.to_thread(release, group, back.path)
        finally:
            writer.close()


async def _expect(reader: asyncio.StreamReader, letter: bytes, timeout: float) -> None:
    try:
        line = await asyncio.wait_for(reader.readline(), timeout)
    except TimeoutError:
        raise CannotMove("the job did not call exec in time; it stays at home") from None
    if line[:1] != letter:
        raise CannotMove("the job could not be held at its start; it stays at home", reasons=[line[1:].decode(errors="replace").strip()])


def _runs(j: Job) -> bool:
    try:
        st = procfs.stat(j.pid)
    except ProcessLookupError:
        return False
    return st.start == j.start and st.state not in "ZX"
