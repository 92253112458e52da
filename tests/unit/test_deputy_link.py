"""The deputy's packets, and which signals are the guest's."""

from __future__ import annotations

import signal
import struct

import pytest

from mig.deputy import link
from mig.deputy.link import Hello, Signal


def packet(op: bytes, a: int, b: int, data: bytes = b"") -> bytes:
    return struct.pack("=cxxxiq", op, a, b) + data


def test_what_goes_to_the_deputy() -> None:
    assert link.exit_packet(0x8B) == packet(b"X", 0x8B, 0)
    assert link.stop_packet(signal.SIGTSTP) == packet(b"Z", 20, 0)
    assert link.close_packet(7) == packet(b"C", 7, 0)


def test_what_comes_from_the_deputy() -> None:
    assert link.unpack(packet(b"H", 4711, 0)) == Hello(4711)
    info = struct.pack("=IiiIIiIIIIiiQ", 37, 0, -1, 99, 1000, 0, 0, 0, 0, 0, 0, -2, 2**64 - 2).ljust(128, b"\0")
    assert link.unpack(packet(b"S", 37, -1, info)) == Signal(37, link.SI_QUEUE, 99, 1000, 2**64 - 2)


@pytest.mark.parametrize("bad", [b"", b"H", packet(b"Q", 0, 0), packet(b"S", 15, 0), packet(b"S", 15, 0, b"\0" * 20)])
def test_anything_else_is_refused(bad: bytes) -> None:
    with pytest.raises(ValueError):
        link.unpack(bad)


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGCHLD, signal.SIGSEGV, signal.SIGCONT, 40])
@pytest.mark.parametrize("code", [link.SI_USER, link.SI_QUEUE, link.SI_TKILL])
def test_what_somebody_sent_is_forwarded(sig: int, code: int) -> None:
    assert link.should_forward(Signal(sig, code, 1, 0, 0))


@pytest.mark.parametrize(
    ("sig", "code", "forwarded"),
    [
        (signal.SIGINT, link.SI_KERNEL, True),  # Ctrl-C
        (signal.SIGTSTP, link.SI_KERNEL, True),
        (signal.SIGHUP, link.SI_KERNEL, True),
        (signal.SIGCONT, link.SI_KERNEL, True),
        (signal.SIGALRM, link.SI_KERNEL, False),
        (signal.SIGPROF, link.SI_KERNEL, False),
        (signal.SIGCHLD, 1, False),  # CLD_EXITED
        (signal.SIGIO, 1, False),
        (signal.SIGSEGV, 1, False),
    ],
)
def test_of_the_kernel_s_only_what_is_not_the_deputy_s_own(sig: int, code: int, forwarded: bool) -> None:
    assert link.should_forward(Signal(sig, code, 0, 0, 0)) is forwarded
