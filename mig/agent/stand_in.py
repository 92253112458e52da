"""What stands at home in the guest's place: the original made into the deputy, and what is left of it that still holds memory."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

from mig.agent import holding, home_locks
from mig.agent.deputy_link import DeputyLink
from mig.deputy import link
from mig.errors import MigError
from mig.kernel import procfs
from mig.kernel.cgroup import Cgroup

if TYPE_CHECKING:
    from mig.agent.home_source import HomeSource

log = logging.getLogger(__name__)


class StandIn:
    """Of process ``pid``, once it has left: ``on_signal(Signal)`` for each signal to pass on, ``on_death()`` once it is gone.

    ``holder``: the process that holds the original's memory; 0 for none.
    """

    def __init__(self, pid: int, on_signal: Callable[[link.Signal], None], on_death: Callable[[], None]) -> None:
        self.pid, self.on_signal, self.on_death = pid, on_signal, on_death
        self.holder = 0
        self._deputy: DeputyLink | None = None
        self._frozen: Cgroup | None = None  # the original, only where the conversion to a deputy failed
        self._members: holding.Members | None = None  # of the tree that left home, while their memory is served

    async def take_place(self, source: HomeSource) -> None:
        """After the commit: the original becomes the deputy, and its descendants end.  Where that fails it stays as it is, frozen."""
        holds = source.carrier.mode != "full"
        try:
            self._keep_members(source)
            assert source.converter is not None
            await holding.keep_exit_writes(source)
            deputy = await source.converter.convert(self.pid, str(source.group.path), source.drop_signals, hold=holds)
            self.holder = deputy.holder or 0
            self._deputy = DeputyLink(deputy, self.on_signal, self.on_death)
            self._drop_record_locks(self._deputy)
            source.leave_group()
        except (MigError, OSError) as e:
            if procfs.state(self.pid) in (None, "Z"):
                self.on_death()
            else:
                log.error("no deputy could be made of %d, the frozen original stays in its place: %s", self.pid, e)
                self._frozen = source.group

    def _keep_members(self, source: HomeSource) -> None:
        """The descendants run elsewhere: here they end at once, or, where their memory is still to be sent, later."""
        descendants = procfs.tree(self.pid)[1:]
        if needed := source.held_members() & set(descendants):
            self._members = holding.Members(sorted(needed))
        for p in set(descendants) - needed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(p, signal.SIGKILL)

    def _drop_record_locks(self, deputy: DeputyLink) -> None:
        """Record locks survive exec: the file server waits for those of the original, and gets them when it closes the files."""
        for _, fd in home_locks.scan([self.pid])[1]:
            deputy.close_descriptor(fd)

    async def end_members(self) -> None:
        """Their memory is not needed any more, or the pipes that they hold are in the way; idempotent."""
        if self._members is not None:
            await self._members.end()

    async def let_go(self) -> None:
        """The guest has all of its memory, or never will: nothing is held for it."""
        await self.end_members()
        await holding.let_go(self.holder, self._deputy)
        self.holder = 0

    def stopped(self) -> bool:
        """Whether the deputy stands stopped."""
        return self._deputy is not None and procfs.state(self.pid) == "T"

    def stop(self, sig: int) -> None:
        """The guest was stopped by ``sig``."""
        if self._deputy is not None and procfs.state(self.pid) != "T":  # one that SIGSTOP stopped would stop again, once continued
            self._deputy.stop(sig)

    def close_descriptors(self, pids_fds: list[list[int]]) -> None:
        """The guest holds these of a process at home no more."""
        if self._deputy is not None:
            for p, fd in pids_fds:
                if p == self.pid:
                    self._deputy.close_descriptor(fd)

    async def end(self, status: int) -> None:
        """End as the guest ended; ``status`` as from wait()."""
        if self._deputy is not None:
            self._deputy.end(status)
            try:
                await asyncio.wait_for(self._deputy.gone.wait(), 10)
            except TimeoutError:
                log.warning("the deputy is not ended by status %#x; it is killed", status)
                os.kill(self.pid, signal.SIGKILL)
        elif self._frozen is not None:
            self._frozen.kill()
            self._frozen.remove()

    def close(self) -> None:
        """Let go of the deputy, which stays."""
        if self._deputy is not None:
            self._deputy.close()
