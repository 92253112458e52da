"""The source's connection to the destination of a move: ask, ship images, commit's GO, and the question when an answer was lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
from typing import Any

from mig import wire
from mig.errors import CannotMove, MigError, MoveFailed
from mig.migration.faults import Fault, reach
from mig.model import NodeInfo
from mig.trust import links

CHUNK = 1 << 20
MAX_IMAGES = 1 << 44
MAX_FILES = 200_000
SILENCE = 10
"""Seconds after which a silent partner of a move is given up: a process stands frozen meanwhile, and giving up only means rolling back."""


class PeerError(MigError):
    """The destination reported a failure of its own; its words are quoted."""


class Destination:
    """One move's control connection to node ``node``."""

    def __init__(self, node: NodeInfo) -> None:
        self.node = node
        self.sock: socket.socket | None = None
        self.ready_info: dict[str, Any] = {}

    async def ask_for_cell(self, request: dict[str, Any]) -> None:
        """Connect, and send the prepare message; raises :class:`MoveFailed` when the node cannot be reached."""
        try:
            self.sock = await links.connect(self.node.id, self.node.addr, self.node.port, dead_after=SILENCE)
        except (OSError, TimeoutError) as e:
            why = str(e) or "no answer"
            raise MoveFailed(f"{self.node.name} ({self.node.addr}) cannot be reached: {why}", hint="see: mosctl status") from e
        await wire.asend(self.sock, **request)

    async def prepared(self) -> dict[str, Any]:
        """Wait for the cell.  Raises :class:`CannotMove` with the destination's reasons, or :class:`PeerError` when preparing failed."""
        return await self._expect("prepared")

    async def _expect(self, op: str) -> dict[str, Any]:
        if self.sock is None:
            raise EOFError("no connection")
        try:
            m = await wire.arecv(self.sock)
        except (EOFError, ConnectionError) as e:
            raise PeerError(f"{self.node.name} ended the connection while we waited for '{op}'") from e
        if m.get("op") == op:
            return m
        if m.get("op") == "refused":
            raise CannotMove(f"{self.node.name} does not take it", reasons=[str(r) for r in m.get("reasons", ())])
        error = m.get("error")
        if isinstance(error, dict):
            said = MigError.from_wire(error)
            raise PeerError(f"{self.node.name}: {said.message}", reasons=said.reasons, hint=said.hint)
        raise PeerError(f"{self.node.name} answered {m.get('op')!r} where '{op}' was expected")

    async def ship(self, img_dir: str, **head: Any) -> int:
        """Send every file of ``img_dir`` in one message and a raw stream; returns the number of bytes."""
        assert self.sock is not None
        loop = asyncio.get_running_loop()
        with os.scandir(img_dir) as entries:
            files = sorted((e.name, e.stat().st_size) for e in entries if e.name.endswith(".img") and e.is_file(follow_symlinks=False))
        total = sum(size for _, size in files)
        await wire.asend(self.sock, op="images", files=files, **head)
        sent, half_way = 0, False
        small = bytearray()
        for name, size in files:
            # most images are tiny: one send for many of them instead of a packet each
            if size < CHUNK:
                with open(os.path.join(img_dir, name), "rb") as f:
                    small += f.read()
            else:
                await loop.sock_sendall(self.sock, small)
                small.clear()
                with open(os.path.join(img_dir, name), "rb") as f:
                    await loop.sock_sendfile(self.sock, f, 0, size, fallback=True)
            sent += size
            if not half_way and sent >= total // 2:
                half_way = True
                await reach(Fault.MID_TRANSFER)
        await loop.sock_sendall(self.sock, small)
        return total

    async def ready(self) -> dict[str, Any]:
        """Wait until the copy stands at the destination's barrier."""
        self.ready_info = await self._expect("ready")
        return self.ready_info

    async def fill(self) -> None:
        """Have the destination fetch what the images lack, and wait until it has all of it."""
        assert self.sock is not None
        await wire.asend(self.sock, op="fill")
        await self._expect("filled")

    def verify(self) -> None:
        """Raises :class:`PeerError` when the destination has already closed the connection."""
        assert self.sock is not None
        if select.select([self.sock], [], [], 0)[0]:
            # nothing is due before GO: readable means closed, or a last word
            raise PeerError(f"{self.node.name} is gone")

    async def go(self) -> dict[str, Any]:
        """GO, then wait for RUNNING; raises when the answer is lost.

        The connection is closed then: a destination that has not heard GO sees its end and drops its copy instead of waiting for a word
        that does not come.
        """
        assert self.sock is not None
        try:
            await reach(Fault.AFTER_COMMIT)
            await wire.asend(self.sock, op="go")
            m = await wire.arecv(self.sock)
            if m.get("op") != "running":
                raise EOFError(f"{self.node.name} answered {m.get('op')!r} to GO")
        except BaseException:
            self.close()
            raise
        return m

    async def ask(self, mid: str) -> str:
        """What the destination's node says of the move: ``running``, ``aborted`` or ``pending``.  On a fresh connection."""
        return str((await self._question("ask", mid)).get("state", ""))

    async def _question(self, op: str, mid: str) -> dict[str, Any]:
        s = await links.connect(self.node.id, self.node.addr, self.node.port)
        try:
            await wire.asend(s, op=op, mid=mid)
            return await asyncio.wait_for(wire.arecv(s), 5)
        finally:
            s.close()

    async def known(self, mid: str) -> None:
        """Tell the destination that its answer arrived: nobody will ask it about this move any more.

        By the move's connection, or on a fresh one after a doubt; a destination that does not hear it keeps a small journal.
        """
        with contextlib.suppress(OSError, EOFError, TimeoutError):
            if self.sock is not None:
                await wire.asend(self.sock, op="known")
            else:
                await self._question("known", mid)

    async def abort(self) -> None:
        """Tell the destination to drop its copy, and wait a moment for its word; the end of the connection says the same."""
        if self.sock is None:
            return
        try:
            await wire.asend(self.sock, op="abort")
            while (await asyncio.wait_for(wire.arecv(self.sock), 3)).get("op") != "aborted":
                pass  # an answer to an earlier step was still on its way
        except (OSError, EOFError, TimeoutError):
            pass  # it sees the end of the connection, which means abort as well
        self.close()

    def close(self) -> None:
        """Close the connection; idempotent."""
        if self.sock is not None:
            self.sock.close()
            self.sock = None


async def receive_images(s: socket.socket, head: dict[str, Any], directory: str) -> int:
    """The destination's end of :meth:`Destination.ship`: write the announced files; returns bytes.

    Raises :class:`wire.WireError` for names or sizes that no honest source sends; nothing outside ``directory`` is ever touched.
    """
    loop = asyncio.get_running_loop()
    files = head.get("files")
    if not isinstance(files, list) or len(files) > MAX_FILES:
        raise wire.WireError("no list of image files")
    buffer = bytearray(CHUNK)
    view = memoryview(buffer)
    total = 0
    for item in files:
        name, size = str(item[0]), int(item[1])
        if "/" in name or name.startswith(".") or not name.endswith(".img") or size < 0 or total + size > MAX_IMAGES:
            raise wire.WireError(f"not an image file: {name!r} of {size} bytes")
        fd = os.open(os.path.join(directory, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            left = size
            while left:
                n = await loop.sock_recv_into(s, view[: min(left, CHUNK)])
                if not n:
                    raise EOFError("the source closed the connection in the middle of the images")
                done = 0
                while done < n:
                    done += os.write(fd, view[done:n])
                left -= n
        finally:
            os.close(fd)
        total += size
    return total
