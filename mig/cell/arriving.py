"""The guest's memory as far as it comes after the guest: the keeper's pager, if there is one, and what its news mean for the row."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mig import wire
from mig.criu import features
from mig.errors import MigError
from mig.memory.pager_link import PagerLink
from mig.model import GuestState

log = logging.getLogger(__name__)


class Arriving:
    """Without a pager everything is in the images, and all of this is done at once.

    ``source``: where the memory comes from, as the prepare message tells it; ``row`` is kept up to date until ``over``; ``whole`` is called
    once, with figures, when all of it is on this node and the guest runs.  ``no_pager``: why there is none, though there is a source.
    """

    def __init__(
        self, source: dict[str, Any] | None, row: GuestState, over: asyncio.Event, whole: Callable[[dict[str, Any]], None]
    ) -> None:
        self.source, self.row, self.over, self.whole = source, row, over, whole
        self.no_pager = ""
        self._pager: PagerLink | None = None
        self._filled = False  # all of it was fetched before GO
        self._told_whole = False

    def start(self, images: Path, cell: Path) -> None:
        """Start the pager, blocking; where that is not possible here the source sends everything in the images."""
        if not self.source:
            return
        able = features.probe()
        if not (able.lazy_pages and able.uffd):
            self.no_pager = "userfaultfd or CRIU's lazy restore is missing there"
            return
        try:
            self._pager = PagerLink.start(self.source, images, cell)
        except MigError as e:
            self.no_pager = e.message
            log.warning("no pager: %s", e.message)

    async def lay_out(self, memory: Any, lost: Callable[[str], None]) -> bool:
        """Tell the pager what the images lack; False when they hold everything.  ``lost`` is called when it can never arrive."""
        if self._pager is None:
            if memory:
                raise wire.WireError("the images lack memory, and there is no pager")
            return False
        if memory is None:
            self._pager.close()
            self._pager = None
            return False
        await self._pager.layout(memory, lost, self.news)
        return True

    async def restored(self) -> None:
        """Wait until the pager has the restored processes in its hands."""
        if self._pager is not None:
            await self._pager.restored()

    async def fill(self, word: asyncio.Future[Any]) -> bool:
        """Fetch all of it before the guest runs; False if the source said something else meanwhile (``word``)."""
        if self._pager is not None:
            await self._pager.push()
            whole: asyncio.Future[Any] = asyncio.ensure_future(self._pager.whole.wait())
            try:
                await asyncio.wait({word, whole}, return_when=asyncio.FIRST_COMPLETED)
                if not whole.done():
                    return False
            finally:
                whole.cancel()
        self._filled = True
        return True

    async def push(self) -> None:
        """The guest runs: all of its memory is wanted now, if it was not fetched before."""
        if self._pager is not None and not self._filled:
            await self._pager.push()

    def news(self) -> None:
        """Pages have arrived, or the source does not answer."""
        if self._pager is None or self.over.is_set() or not self.row.host_pid:
            return
        self.row.arriving, self.row.waiting_s = self._pager.missing, round(self._pager.silent, 1)
        self.row.waiting_for = str((self.source or {}).get("name", "")) if self._pager.silent else ""
        if self._pager.whole.is_set() and not self._told_whole and self.row.state in ("running", "stopped", "moving"):
            self._told_whole = True
            self.whole(self._pager.report)

    @property
    def done(self) -> bool:
        """Whether every page is in its place."""
        return self._pager is None or self._pager.arrived.is_set()

    async def wait(self, timeout: float) -> bool:
        """Wait until it is done, ``timeout`` seconds at the most (0: for ever); whether it is."""
        if self._pager is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._pager.arrived.wait(), timeout or None)
        return self.done

    def close(self) -> None:
        """End the pager; nothing of the cell may be left.  Idempotent."""
        if self._pager is not None:
            self._pager.close()
