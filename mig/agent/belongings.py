"""What the guest has at home and uses from wherever it is, and the answers to what a keeper asks about it: home's files and their locks,
what is proxied, the clocks.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Any

from mig.agent.externals import Externals
from mig.agent.files import FileServer
from mig.agent.keeper_link import KeeperLink
from mig.homefs.guest import Guest
from mig.kernel import procfs
from mig.model import ProcessFacts

log = logging.getLogger(__name__)


class Belongings:
    """Of process ``pid``; served to who has the ``token``.  ``at_home`` tells whether a keeper is this node's own: another one has nothing
    to say about processes and files of this node."""

    def __init__(self, pid: int, token: bytes, externals: Externals, at_home: Callable[[KeeperLink], bool]) -> None:
        self.pid, self.token, self.externals, self.at_home = pid, token, externals, at_home
        self._files: FileServer | None = None
        self._kept = 0

    @property
    def files(self) -> FileServer:
        """The file server; only after :meth:`open`."""
        assert self._files is not None
        return self._files

    async def open(self, facts: ProcessFacts, addr: str) -> None:
        """Take copies of everything that will be proxied, and start the file server on ``addr`` if there is none."""
        self.externals.open(facts)
        if self._files is None:
            groups = {facts.uid: list(procfs.status(self.pid).groups)}
            self._files = await FileServer.start(addr, self.token, groups, Guest.of(self.pid, facts.tree))

    async def move(self, addr: str) -> None:
        """Home has another address; as :meth:`FileServer.move`."""
        if self._files is not None and self._files.addr != addr:
            await self._files.move(addr)

    async def expire_names(self) -> None:
        """Names that the destination may have cached are looked up again from now on."""
        await self.files.ask("expire")

    async def keep_names(self, sockets: list[str]) -> int:
        """The names of its sockets, before the images go to a restore that binds them anew; how many of them :meth:`names` can put back."""
        self._kept = int((await self.files.ask("keep", names=sockets))["count"]) if sockets else 0
        return self._kept

    async def names(self, *, back: bool, done: bool = False) -> None:
        """The names of its sockets: ``back`` to what they were if the move fails, ``done`` when it is over either way."""
        if self._kept:
            try:
                await self.files.ask("names", back=back, done=done)
            except (EOFError, OSError, TimeoutError) as e:
                log.error("%d name(s) of its sockets are left to themselves: the file server does not answer (%s)", self._kept, e)
        if done:
            self._kept = 0

    async def inherit_locks(self, pids: list[int]) -> None:
        """Record locks of these frozen processes count as the guest's own when it asks for them; none: the move was given up, and nothing
        that its copy has taken is held any more."""
        await self.files.ask("inherit", pids=pids)
        if not pids:
            await self.files.ask("given up")

    async def answer(self, k: KeeperLink, m: dict[str, Any], facts: ProcessFacts, *, stored: bool) -> bool:
        """Answer a question of a keeper; False if ``m`` is none.  ``facts``: of the process as it left; ``stored``: its images lie here."""
        match m.get("op"):
            case "hold":
                await self.externals.hold()
                await k.send("held")
            case "unhold":
                self.externals.resume()
            case "locks":
                await k.send("locks", locks=(await self.files.ask("locks"))["locks"])
            case "inherit":
                if self.at_home(k):
                    await self.inherit_locks([int(p) for p in m["pids"]])
                await k.send("inherited")
            case "leaves":
                if self.at_home(k):
                    await self.files.ask("guest", guest=Guest.of(int(m["pids"][0]), m["pids"]).to_map())
                await k.send("leave")
            case "unlock":
                await self.files.unlock()
                await k.send("unlocked")
            case "relock":
                await self.files.relock()
                await k.send("relocked")
            case "clocks?":
                await k.send("clocks", monotonic=time.monotonic_ns(), boottime=time.clock_gettime_ns(time.CLOCK_BOOTTIME))
            case "ends?":
                await k.send("ends", pid=os.getpid(), fds=self.externals.numbers(), uids=facts.uids, gids=facts.gids)
            case "refused?":
                if self.at_home(k):
                    # what is stored here was looked at when it came
                    files = [] if stored else (await self.files.ask("refused", files=m["files"]))["files"]
                    await k.send("refused", files=files)
            case "busy?":
                await k.send("busy", busy=self.externals.busy())
            case "expire":
                await self.expire_names()
                await k.send("expired", keeps=True)
            case "keep names":
                await k.send("names kept", count=await self.keep_names([str(n) for n in m["names"]]))
            case "names back":
                await self.names(back=True)
                await k.send("names are back")
            case _:
                return False
        return True

    async def stop(self) -> None:
        """End the file server; the externals end with the guest's output."""
        if self._files is not None:
            await self.names(back=False, done=True)
            await self._files.stop()
