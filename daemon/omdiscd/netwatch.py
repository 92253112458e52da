"""Looks after the network under the gossip: an address that goes or changes, an interface that comes back, silence, a twin.

These were openMosix's classic failures ("I don't see all my nodes"); each is mended here or gets a line in the log that says what to do.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import Callable

from mig.config import Config
from mig.tasks import beat
from omdiscd import addresses, node_id
from omdiscd.discovery import Discovery

log = logging.getLogger(__name__)

_ALONE_S = 30.0
"""Seconds without any other node after which we say so, once."""


class NetWatch:
    """``anew``: called with the reason when omdiscd must start again with another address or id."""

    def __init__(self, config: Config, discovery: Discovery, chosen: list[str], anew: Callable[[str], None]) -> None:
        self.config, self.discovery, self.anew = config, discovery, anew
        self.chosen = chosen
        """Interfaces that the administrator named; empty: the one of our address."""
        self._candidate = ""
        self._started = time.monotonic()
        self._told_alone = False

    async def run(self) -> None:
        """Until cancelled."""
        me = self.discovery.members.me
        if me.addr.startswith("127."):
            await asyncio.Event().wait()  # loopback neither changes nor goes
        self._second_card(me.addr)
        while True:
            await beat(self.config.hello_s)
            self.look()

    def look(self) -> None:
        """One look."""
        me = self.discovery.members.me
        if addresses.interface_of(me.addr):
            self._candidate = ""
            self._join_again()
        else:
            self._without(me.addr)
        if self.discovery.members.clash and not self.config.id and node_id.forget(me.id, me.addr):
            self.anew(f"{self.discovery.members.clash} has its id {me.id} too, which it got at another address; it takes that of {me.addr}")
        alone = not self.discovery.members.table.ids
        if alone and not self._told_alone and time.monotonic() - self._started > _ALONE_S:
            self._told_alone = True
            where = ", ".join(self.discovery.interfaces) or "no interface"
            log.warning(
                "no other node was heard of in %d s (hellos to %s on %s): does omdiscd run there with our key, is port %d open (UDP, TCP)? "
                "Where switches or clouds drop multicast (IGMP snooping without a querier), set seeds",
                _ALONE_S, self.discovery.group or "no group", where, me.port,
            )  # fmt: skip

    def _without(self, addr: str) -> None:
        new = ""
        if not self.config.addr:
            try:
                new = addresses.first_address(self.chosen[0]) if self.chosen else addresses.default_address()
            except LookupError:
                pass  # the interface is gone, or has no address yet
        if new and not new.startswith("127.") and new != "::1":
            if new == self._candidate:  # twice: it stays
                self.anew(f"its address was {addr} and is {new} now")
            self._candidate = new
            return
        self.discovery.say(f"the address {addr} is on no interface of this machine any more: nobody can reach this node until it is back")

    def _join_again(self) -> None:
        for name in self.discovery.wanted:
            try:
                self.discovery.join(name)
                log.info("the group is heard on %s again", name)
            except OSError as e:
                if e.errno != errno.EADDRINUSE:  # joined already, as ever
                    self.discovery.say(f"no multicast on {name}: {e.strerror}")

    def _second_card(self, addr: str) -> None:
        if self.chosen or not self.discovery.group:
            return
        mine = addresses.interface_of(addr)
        if more := addresses.others(mine):
            log.info("hellos go out on %s only; this machine also has %s (omdiscd -i %s)", mine, ", ".join(more), ",".join([mine, *more]))
