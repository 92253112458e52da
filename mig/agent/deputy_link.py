"""The agent's end of the deputy: signals that reach the process at home, and its end."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable

from mig.deputy import link
from mig.deputy.convert import Deputy

log = logging.getLogger(__name__)

PACKET = 8192


class DeputyLink:
    """Reads the deputy's packets in the running loop: ``on_signal(Signal)`` for each signal to pass on, ``on_death()`` once it is gone."""

    def __init__(self, deputy: Deputy, on_signal: Callable[[link.Signal], None], on_death: Callable[[], None]) -> None:
        self.deputy = deputy
        self.on_signal, self.on_death = on_signal, on_death
        self.gone = asyncio.Event()
        self._sock: socket.socket = deputy.sock
        self._sock.setblocking(False)
        self._loop = asyncio.get_running_loop()
        # the link alone does not tell: the deputy's children may have held a copy; the pidfd does
        self._pidfd = os.pidfd_open(deputy.pid)
        self._loop.add_reader(self._sock, self._readable)
        self._loop.add_reader(self._pidfd, self._ended)

    def _readable(self) -> None:
        while True:
            try:
                b = self._sock.recv(PACKET)
            except BlockingIOError:
                return
            except OSError:
                b = b""
            if not b:
                self._loop.remove_reader(self._sock)
                return
            packet = link.unpack(b)
            if isinstance(packet, link.Signal) and link.should_forward(packet):
                self.on_signal(packet)

    def _ended(self) -> None:
        if not self.gone.is_set():
            self.gone.set()
            self._loop.remove_reader(self._pidfd)
            self._loop.remove_reader(self._sock)
            self.on_death()

    def _send(self, packet: bytes) -> None:
        try:
            self._sock.send(packet)
        except OSError as e:
            log.info("the deputy %d does not listen: %s", self.deputy.pid, e)

    def end(self, status: int) -> None:
        """Let the deputy end as the guest ended; ``status`` as from wait()."""
        self._send(link.exit_packet(status))

    def stop(self, sig: int) -> None:
        """The guest was stopped by ``sig``: so is the deputy."""
        self._send(link.stop_packet(sig))

    def close_descriptor(self, fd: int) -> None:
        """The guest holds this descriptor no more."""
        self._send(link.close_packet(fd))

    def reap(self) -> None:
        """A child that ends without a signal (the memory holder) has ended."""
        self._send(link.reap_packet())

    def close(self) -> None:
        """Let go of the link; the deputy stays."""
        for f in (self._sock.fileno(), self._pidfd):
            if f >= 0:
                self._loop.remove_reader(f)
        self._sock.close()
        os.close(self._pidfd)
