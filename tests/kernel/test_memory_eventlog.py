"""The log of a pager, with a real userfaultfd: what the kernel told is there for the next pager, exactly."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Iterator

import pytest

from mig.kernel import libc, uffd
from mig.memory.eventlog import Closed, EventLog, Opened, Told

PAGE = 4096
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
for _name in ("munmap", "madvise"):
    getattr(_libc, _name).argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int][: 2 + (_name == "madvise")]
_libc.strnlen.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]
MADV_DONTNEED = 4


class Registered:
    """16 pages of this process that nobody has touched, and their userfaultfd."""

    def __init__(self) -> None:
        self.fd = libc.userfaultfd(os.O_CLOEXEC | os.O_NONBLOCK)
        features = uffd.UFFD_FEATURE_EVENT_REMOVE | uffd.UFFD_FEATURE_EVENT_UNMAP | uffd.UFFD_FEATURE_EVENT_REMAP
        api = (ctypes.c_uint64 * 3)(uffd.UFFD_API, features, 0)
        assert _libc.ioctl(self.fd, uffd.UFFDIO_API, ctypes.byref(api)) == 0
        self.base = int(_libc.mmap(None, 16 * PAGE, 3, 0x22, -1, 0))
        register = (ctypes.c_uint64 * 4)(self.base, 16 * PAGE, uffd.UFFDIO_REGISTER_MODE_MISSING, 0)
        assert _libc.ioctl(self.fd, uffd.UFFDIO_REGISTER, ctypes.byref(register)) == 0

    def meanwhile(self, call: str, *args: int) -> threading.Thread:
        """A call that lasts until its event has been read."""
        t = threading.Thread(target=lambda: getattr(_libc, call)(*args), daemon=True)
        t.start()
        return t


@pytest.fixture
def memory() -> Iterator[Registered]:
    """Freed at the end."""
    m = Registered()
    yield m
    os.close(m.fd)
    _libc.munmap(m.base, 16 * PAGE)


def read(log: EventLog, fd: int) -> list[uffd.Event]:
    """Wait for events."""
    deadline = time.monotonic() + 10
    while not (events := log.read(fd)):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return events


def test_another_log_over_the_same_memfd_knows_everything(memory: Registered) -> None:
    """Discards and unmaps in order; faults leave no trace, for whoever waits is woken and asks again."""
    log = EventLog()
    log.opened(memory.fd, 3)
    at = memory.base
    t = memory.meanwhile("madvise", at, 2 * PAGE, MADV_DONTNEED)
    assert read(log, memory.fd) == [uffd.Event(uffd.EVENT_REMOVE, at, at + 2 * PAGE)]
    t.join()
    toucher = memory.meanwhile("strnlen", at + 5 * PAGE, 1)  # a call of libc's: it waits without the interpreter's lock
    assert [e.kind for e in read(log, memory.fd)] == [uffd.EVENT_PAGEFAULT]
    assert uffd.zeropage(memory.fd, at + 5 * PAGE, PAGE) == (PAGE, 0)
    toucher.join()
    t = memory.meanwhile("munmap", at + 8 * PAGE, PAGE)
    assert [e.kind for e in read(log, memory.fd)] == [uffd.EVENT_UNMAP]
    t.join()
    log.told(memory.fd, uffd.Event(uffd.EVENT_REMAP, 1 << 20, 1 << 21, 1 << 16))
    log.closed(memory.fd)
    again = list(EventLog(os.dup(log.fd)).replay())
    assert again == [
        Opened(memory.fd, 3),
        Told(memory.fd, uffd.Event(uffd.EVENT_REMOVE, at, at + 2 * PAGE)),
        Told(memory.fd, uffd.Event(uffd.EVENT_UNMAP, at + 8 * PAGE, at + 9 * PAGE)),
        Told(memory.fd, uffd.Event(uffd.EVENT_REMAP, 1 << 20, 1 << 21, 1 << 16)),
        Closed(memory.fd),
    ]


def test_a_message_that_was_read_and_not_yet_looked_at_is_not_lost(memory: Registered, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pager dies between the kernel's copy and its own next instruction."""
    log = EventLog()
    t = memory.meanwhile("madvise", memory.base, PAGE, MADV_DONTNEED)
    time.sleep(0.05)

    def die(messages: object) -> list[uffd.Event]:
        raise SystemExit

    with monkeypatch.context() as m:
        m.setattr("mig.memory.eventlog.uffd.parse", die)
        with pytest.raises(SystemExit):
            log.read(memory.fd)
    t.join()
    assert list(EventLog(os.dup(log.fd)).replay()) == [Told(memory.fd, uffd.Event(uffd.EVENT_REMOVE, memory.base, memory.base + PAGE))]
