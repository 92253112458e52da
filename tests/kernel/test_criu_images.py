"""The images that we read and edit, proved by real dumps and restores."""

from __future__ import annotations

import os
import signal
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mig.criu import images
from mig.errors import MigError
from mig.kernel import procfs
from tests.kernel.criu_guest import Guest, Start, guests, until


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with guests(tmp_path) as begin:
        yield begin


@dataclass(frozen=True)
class Call:
    tid: int
    nr: int


def interrupted(g: Guest) -> Call:
    """The call in which the frozen guest stands."""
    found = procfs.syscall(g.pid, g.pid)
    assert found is not None
    return Call(g.pid, found.nr)


def in_call(g: Guest, *numbers: int) -> bool:
    found = procfs.syscall(g.pid, g.pid)
    return found is not None and found.nr in numbers


def outcome(g: Guest) -> tuple[int, int, float]:
    """The guest's own report: return value, errno, seconds."""
    until(lambda: len(g.lines()) == 2 and g.lines()[1].count(" ") == 2, "the guest's report")
    ret, err, seconds = g.lines()[1].split()
    return int(ret), int(err), float(seconds)


SLEEPS = (images.NR_NANOSLEEP, images.NR_CLOCK_NANOSLEEP)


def test_an_interrupted_sleep_goes_on_with_what_remained(start: Start) -> None:
    g = start("nanosleep")
    until(lambda: in_call(g, *SLEEPS), "the sleep")
    time.sleep(1.5)  # of 2 s
    g.group.freeze()
    call = interrupted(g)
    g.dump()
    g.end()
    assert images.mend_interrupted(g.images, [call]) == [g.pid]
    g.restore()
    ret, err, seconds = outcome(g)
    assert (ret, err) == (0, 0)
    assert 2.0 <= seconds < 3.5  # starting again from the beginning would have taken this long


def test_an_interrupted_poll_goes_on(start: Start) -> None:
    g = start("poll")
    until(lambda: in_call(g, images.NR_POLL), "poll")
    g.group.freeze()
    call = interrupted(g)
    g.dump()
    g.end()
    assert images.mend_interrupted(g.images, [call]) == [g.pid]
    g.restore()
    ret, err, seconds = outcome(g)
    assert (ret, err) == (0, 0)  # timed out
    assert seconds >= 1.0


def test_without_mending_the_call_fails(start: Start) -> None:
    """Why mend_interrupted exists: should this fail one day, CRIU has learnt it."""
    g = start("poll")
    until(lambda: in_call(g, images.NR_POLL), "poll")
    g.dump()
    g.end()
    g.restore()
    assert outcome(g)[:2] == (-1, 4)


def test_a_thread_in_another_call_is_left_alone(start: Start) -> None:
    g = start("count")
    g.dump()
    core = g.images / f"core-{g.pid}.img"
    before = core.read_bytes()
    assert images.mend_interrupted(g.images, [Call(g.pid, 0), Call(999999, images.NR_POLL)]) == []
    assert core.read_bytes() == before


def test_pending_signals_are_found_in_both_queues(start: Start) -> None:
    g = start("pending")
    g.dump()
    assert images.pending_signals(g.images, g.pid) == 1 << (signal.SIGUSR1 - 1) | 1 << (signal.SIGUSR2 - 1)


def test_locks_are_read_and_written(start: Start) -> None:
    g = start("lock")
    g.dump()
    (lock,) = images.locks(g.images)
    assert (lock.flag, lock.type, lock.pid) == (images.FL_FLOCK, 0, g.pid)
    assert os.path.samefile(f"/proc/{g.pid}/fd/{lock.fd}", f"/proc/{g.pid}/exe")
    original = (g.images / "filelocks.img").read_bytes()
    images.write_locks(g.images, [lock])
    assert (g.images / "filelocks.img").read_bytes() == original
    images.write_locks(g.images, [])
    assert images.locks(g.images) == []
    images.write_locks(g.images, [lock])
    g.end()
    g.restore()
    locked = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    assert [f for f in locked if f[1] == "FLOCK" and f[4] == str(g.pid)]


def in_wait(start: Start, tmp_path: Path) -> Guest:
    """A guest with a connection that waits to be accepted, dumped and ended."""
    g = start("waiting", cwd=tmp_path)
    until(lambda: procfs.state(g.pid) == "T", "its stop")
    g.dump()
    g.end()
    return g


def test_a_connection_that_waits_to_be_accepted_is_restored(start: Start, tmp_path: Path) -> None:
    g = in_wait(start, tmp_path)
    assert images.carry_sockets(g.images) == [str(tmp_path / "waiting.sock")]
    assert images.carry_sockets(g.images) == [str(tmp_path / "waiting.sock")], "in order already"
    g.restore()
    os.kill(g.pid, signal.SIGCONT)
    assert outcome(g)[:2] == (4, 0)


def test_without_an_order_it_is_not(start: Start, tmp_path: Path) -> None:
    """Why carry_sockets exists: should this fail one day, CRIU has learnt it."""
    g = in_wait(start, tmp_path)
    with pytest.raises(MigError, match="unresolved"):
        g.restore()


def test_no_locks_no_image(tmp_path: Path) -> None:
    assert images.locks(tmp_path) == []


def test_open_files_are_listed_with_their_positions(start: Start) -> None:
    g = start("count")
    g.dump()
    (out,) = [f for f in images.list_files(g.images) if f.name == str(g.out)]
    assert out.pos == out.size == g.out.stat().st_size


def test_a_damaged_image_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "filelocks.img").write_bytes(bytes(8) + struct.pack("<I", 100) + b"short")
    with pytest.raises(ValueError, match=r"filelocks\.img"):
        images.locks(tmp_path)
