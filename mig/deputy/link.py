"""The packets between the home agent and a deputy, as ``deputy.c`` lays them out, and which of its signals are the guest's.

One packet is one message of a SOCK_SEQPACKET pair: ``u8 op, 3 bytes, i32 a, i64 b``, then data.
"""

from __future__ import annotations

import signal
import struct
from dataclasses import dataclass

SI_USER = 0
SI_KERNEL = 0x80
SI_QUEUE = -1
SI_TKILL = -6

HEAD = struct.Struct("=cxxxiq")
SIGINFO = struct.Struct("=IiiIIiIIIIiiQ")  # the head of struct signalfd_siginfo, which has 128 bytes
MAX_PACKET = HEAD.size + 128

ABOUT_ITS_OWN_DOING = frozenset(
    {
        signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF,  # timers: the guest carries its own
        signal.SIGCHLD, signal.SIGPIPE, signal.SIGIO, signal.SIGURG,  # children and descriptors: the guest has its own
        signal.SIGXCPU, signal.SIGXFSZ,
        signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS,
    }
)  # fmt: skip
"""Signals that, when they come from the kernel, answer what the process itself did or set up: at home that is the deputy or the past."""


@dataclass(frozen=True)
class Hello:
    """The deputy runs and catches signals; ``pid`` as in its own pid namespace."""

    pid: int


@dataclass(frozen=True)
class Signal:
    """A signal that reached the process at home, with what ``sigaction(2)`` says of its sender.

    ``code``: si_code; ``value``: si_value as an unsigned number, for SI_QUEUE.
    """

    sig: int
    code: int
    pid: int
    uid: int
    value: int


def exit_packet(status: int) -> bytes:
    """End as a process with this wait status ended: exit code, or death by the very signal (the core-dump bit cannot be had)."""
    return HEAD.pack(b"X", status, 0)


def stop_packet(sig: int) -> bytes:
    """Stop by the default action of ``sig``; when continued, the deputy reports SIGCONT."""
    return HEAD.pack(b"Z", int(sig), 0)


def close_packet(fd: int) -> bytes:
    """Close a descriptor, so that readers see the end of the pipe once the guest has closed its own end."""
    return HEAD.pack(b"C", fd, 0)


def reap_packet() -> bytes:
    """Wait for children that have ended without a signal: the memory holder."""
    return HEAD.pack(b"R", 0, 0)


def unpack(packet: bytes) -> Hello | Signal:
    """A packet from the deputy; raises ``ValueError`` for anything else."""
    if len(packet) < HEAD.size:
        raise ValueError(f"a packet of {len(packet)} bytes is not the deputy's")
    op, a, b = HEAD.unpack_from(packet)
    if op == b"H":
        return Hello(a)
    if op == b"S" and len(packet) >= HEAD.size + SIGINFO.size:
        info = SIGINFO.unpack_from(packet, HEAD.size)
        return Signal(sig=a, code=b, pid=info[3], uid=info[4], value=info[12])
    raise ValueError(f"unknown packet {op!r} of {len(packet)} bytes")


def should_forward(s: Signal) -> bool:
    """Whether a signal was meant for the guest: all that others sent, and the kernel's unless it answers the process's own doing."""
    from_a_process = s.code in (SI_USER, SI_QUEUE, SI_TKILL)
    return from_a_process or s.sig not in ABOUT_ITS_OWN_DOING
