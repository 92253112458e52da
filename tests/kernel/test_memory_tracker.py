"""Pre-copy of real, running processes: what it calls current is what the frozen process holds, and nothing of it stays behind."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mig.kernel import cgroup, libc, procfs
from mig.kernel.cgroup import Cgroup
from mig.memory import inject, precopy, written
from mig.memory.compared import Comparer
from mig.memory.copier import CannotTrack
from mig.memory.fingerprints import Part
from mig.memory.frames import PAGE, Range
from mig.memory.hide import read_areas
from mig.memory.precopy import Process
from mig.memory.ranges import intersect
from mig.memory.reader import batches
from mig.memory.rounds import Policy
from mig.memory.tracker import WriteTracker
from tests.guests.build import Guests, build
from tests.kernel.deputy_lab import NANOSLEEP, until

MIB = 1 << 20


class Store:
    """A sink that remembers pages like the destination's store."""

    def __init__(self) -> None:
        self.pages: dict[tuple[int, int], bytes] = {}
        self.calls = 0
        self.at_call: Callable[[int], None] = lambda n: None

    def store(self, index: int, addr: int, contents: memoryview) -> int:
        self.calls += 1
        for at in range(0, len(contents), PAGE):
            self.pages[index, addr + at] = bytes(contents[at : at + PAGE])
        self.at_call(self.calls)
        return len(contents)


@pytest.fixture(scope="module")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Guests:
    return build(tmp_path_factory.mktemp("guests"))


class Run:
    """A guest in a cgroup of its own."""

    def __init__(self, group: Cgroup, *command: object) -> None:
        self.group = group
        self.process = subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self.process.pid
        group.create()
        group.add(self.pid)

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, command: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.line()

    def end(self) -> None:
        self.group.kill()
        self.process.kill()
        self.process.wait()
        for f in (self.process.stdin, self.process.stdout):
            assert f is not None
            f.close()
        self.group.remove()


@pytest.fixture
def run() -> Iterator[Callable[..., Run]]:
    started: list[Run] = []

    def start(*command: object) -> Run:
        own = cgroup.of(os.getpid())
        started.append(Run(Cgroup(own / f"mig-test-{os.getpid()}-{len(started)}"), *command))
        return started[-1]

    yield start
    for r in started:
        r.end()


def hidden(pid: int) -> list[tuple[int, int]]:
    return [(a.mapping.start, a.mapping.end) for a in read_areas(pid) if a.hidden]


def process(pid: int) -> Process:
    return Process(0, pid, hidden(pid))


def tracked(pid: int) -> bool:
    """Whether any of its memory is registered with a userfaultfd."""
    return bool(re.search(r"^VmFlags:.* u[mw]\b", Path(f"/proc/{pid}/smaps").read_text(), re.M))


def check(store: Store, current: list[Range], pid: int) -> int:
    """Every page called current is in the store as the process holds it; returns bytes."""
    total = 0
    for r in current:
        now = libc.process_vm_readv(pid, r.start, r.end - r.start)
        for at in range(0, len(now), PAGE):
            assert store.pages[0, r.start + at] == now[at : at + PAGE], f"the page at {r.start + at:#x} is stale"
        total += len(now)
    return total


def test_what_is_called_current_is_what_a_churning_process_holds(guests: Guests, run: Callable[..., Run], tmp_path: Path) -> None:
    g = run(guests.churn, "-m", 24, "-t", 3, "-f", tmp_path / "file")
    assert g.line().endswith(f"ready pid={g.pid}")
    for turn in range(3):
        store = Store()
        tracker = WriteTracker([process(g.pid)], store, Policy(max_rounds=turn + 1, to_the_end=True))
        try:
            sent = tracker.rounds()
            assert sent.rounds and sent.bytes == sent.wire > 24 * MIB
            time.sleep(0.1)
            g.group.freeze()
            try:
                current = tracker.current([process(g.pid)])
                assert check(store, current, g.pid) >= 24 * MIB  # what only waits is there
                assert turn == 0 or tracker.hot()
            finally:
                g.group.thaw()
        finally:
            tracker.close()
        assert not tracked(g.pid)
    assert g.ask("all").endswith("wrong=0")


def test_comparing_finds_what_a_churning_process_holds(guests: Guests, run: Callable[..., Run], tmp_path: Path) -> None:
    """As on a kernel that does not tell of writes: a page that reads the same at the freeze is in the store so, and most are."""
    g = run(guests.churn, "-m", 24, "-t", 3, "-f", tmp_path / "file")
    assert g.line().endswith(f"ready pid={g.pid}")
    store = Store()
    comparer = Comparer([process(g.pid)], store, Policy(max_rounds=3, to_the_end=True))
    try:
        sent = comparer.rounds()
        assert sent.rounds and sent.bytes > 24 * MIB
        time.sleep(0.1)
        g.group.freeze()
        try:
            assert comparer.current([process(g.pid)]) == [], "nobody has watched it between the look and the freeze"
            same = 0
            for start, end in hidden(g.pid):
                for at in range(start, end, MIB):
                    now = libc.process_vm_readv(g.pid, at, min(MIB, end - at))
                    for part, a, b in comparer.known.split(0, at, now):
                        if part is Part.SAME:
                            same += b - a
                            assert all(store.pages[0, at + x] == now[x : x + PAGE] for x in range(a, b, PAGE))
            assert same >= 24 * MIB  # what only waits
        finally:
            g.group.thaw()
    finally:
        comparer.close()
    assert g.ask("all").endswith("wrong=0")


def test_where_the_kernel_does_not_tell_memory_is_compared(
    guests: Guests, run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PAGEMAP_SCAN answers as before Linux 6.7."""

    def no_scan(*_: object, **__: object) -> Iterator[object]:
        raise OSError(errno.ENOTTY, "Inappropriate ioctl for device")

    g = run(guests.verify, "-m", 16, "-p", 1000)
    g.line()
    monkeypatch.setattr("mig.kernel.pagemap.scan", no_scan)
    tracker = precopy.start([process(g.pid)], store := Store(), max_rounds=3)
    try:
        assert isinstance(tracker, Comparer)
        assert tracker.rounds().bytes >= 16 * MIB and len(store.pages) >= 16 * MIB // PAGE
    finally:
        tracker.close()
    assert g.ask("all").endswith("wrong=0")


def test_what_is_written_and_holds_what_it_held_is_not_sent_again(run: Callable[..., Run]) -> None:
    """Like counts of references: every page is written all the time, and none is another."""
    code = (
        "import time; x = bytearray(b'x' * (48 << 20)); print('up', flush=True)\n"
        "while True:\n for at in range(0, len(x), 4096): x[at] = 120\n"
    )
    g = run(sys.executable, "-c", code)
    assert g.line() == "up"
    tracker = WriteTracker([process(g.pid)], store := Store(), Policy(max_rounds=5), bytes_per_s=64 * MIB)
    try:
        sent = tracker.rounds()
        assert 48 * MIB <= sent.bytes < 60 * MIB, "once each"
        g.group.freeze()
        try:
            now = dict.fromkeys((addr for _, addr in store.pages), Part.SEND)
            for addr in now:
                ((now[addr], _, _),) = tracker.known.split(0, addr, libc.process_vm_readv(g.pid, addr, PAGE))
            assert list(now.values()).count(Part.SAME) > 40 * MIB // PAGE
        finally:
            g.group.thaw()
    finally:
        tracker.close()


def test_a_program_that_replaced_itself_has_nothing_current(guests: Guests, run: Callable[..., Run]) -> None:
    g = run(guests.churn, "-m", 8, "-t", 1, "-n")
    g.line()
    tracker = WriteTracker([process(g.pid)], store := Store(), Policy())
    try:
        tracker.rounds()
        assert store.pages
        assert g.ask("exec").endswith("exec")
        g.line()
        g.group.freeze()
        assert tracker.current([process(g.pid)]) == []
        g.group.thaw()
    finally:
        tracker.close()
    assert g.ask("all").endswith("wrong=0")


@pytest.mark.parametrize("when", ["between rounds", "in a round"])
def test_a_process_that_ends_is_left_out(guests: Guests, run: Callable[..., Run], when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that takes a snapshot ends as it likes: the others go on being sent."""
    ends, stays = (run(guests.verify, "-m", 16, "-p", 1000) for _ in range(2))
    for g in (ends, stays):
        g.line()
    store = Store()
    members = [Process(0, stays.pid, hidden(stays.pid)), Process(1, ends.pid, hidden(ends.pid))]
    if when == "in a round":
        members = [Process(1, ends.pid, hidden(ends.pid)), Process(0, stays.pid, hidden(stays.pid))]
    tracker = WriteTracker(members, store, Policy(max_rounds=3, to_the_end=True))

    def end() -> None:
        ends.process.kill()
        ends.process.wait()

    scans, scan = 0, tracker._scan

    def scanned() -> list[Range]:
        nonlocal scans
        scans += 1
        if when == "between rounds" and scans == 2:
            end()
        return scan()

    monkeypatch.setattr(tracker, "_scan", scanned)
    store.at_call = lambda n: end() if when == "in a round" and n == 5 else None
    try:
        assert tracker.rounds().rounds and scans >= 2 and ends.process.poll() is not None
        stays.group.freeze()
        try:
            current = tracker.current(members)
            assert {r.process for r in current} == {0} and check(store, current, stays.pid) >= 15 * MIB
        finally:
            stays.group.thaw()
    finally:
        tracker.close()
    assert stays.ask("all").endswith("wrong=0")


def test_it_stops_when_told_and_keeps_to_its_bound(guests: Guests, run: Callable[..., Run]) -> None:
    g = run(guests.verify, "-m", 64, "-p", 1000)
    g.line()
    store = Store()
    tracker = WriteTracker([process(g.pid)], store, Policy(), bytes_per_s=16 * MIB)
    try:
        store.at_call = lambda n: tracker.stop() if n == 20 else None
        began = time.monotonic()
        sent = tracker.rounds()
        assert 0 < sent.bytes < 64 * MIB and store.calls == 20
        assert time.monotonic() - began >= (sent.bytes - MIB) / (16 * MIB) - 0.1
    finally:
        tracker.close()
    assert not tracked(g.pid)
    assert g.ask("all").endswith("wrong=0")


def test_what_is_written_again_before_its_turn_is_not_sent(guests: Guests, run: Callable[..., Run]) -> None:
    def one_round(hot: int) -> int:
        g = run(guests.verify, "-m", 16, "-w", hot, "-p", 1000)
        g.line()
        tracker = WriteTracker([process(g.pid)], Store(), Policy(max_rounds=1), bytes_per_s=16 * MIB)
        try:
            sent = tracker.rounds().bytes
        finally:
            tracker.close()
        assert g.ask("all").endswith("wrong=0")
        return sent

    few, many = one_round(1), one_round(12)
    assert few > many + 4 * MIB, (few, many)


def test_a_killed_tracker_leaves_no_trace(guests: Guests, run: Callable[..., Run]) -> None:
    g = run(guests.churn, "-m", 16, "-t", 2, "-n")
    g.line()
    before = procfs.descriptors(g.pid)
    code = f"""
import os, signal
from mig.memory.tracker import WriteTracker
from mig.memory.rounds import Policy
from tests.kernel.test_memory_tracker import Store, process
WriteTracker([process({g.pid})], Store(), Policy()).rounds()
print("tracked", flush=True)
signal.pause()
"""
    p = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert p.stdout is not None
    with p.stdout:
        assert p.stdout.readline() == "tracked\n"
        assert tracked(g.pid)
        p.kill()
        p.wait()
    until(lambda: not tracked(g.pid), "the kernel has taken its marks away")
    assert procfs.descriptors(g.pid) == before
    assert g.ask("all").endswith("wrong=0")


def test_an_asker_killed_at_any_time_leaves_no_trace(guests: Guests, run: Callable[..., Run]) -> None:
    g = run(guests.churn, "-m", 8, "-t", 2, "-n")
    g.line()
    before = procfs.descriptors(g.pid)
    wanted = {g.pid: hidden(g.pid)}
    loop = f"while True: os.close(track({wanted})[{g.pid}][0])"
    code = f"import os\nfrom mig.memory.inject import track\nprint('up', flush=True)\n{loop}"
    # the asker ends, its injector goes on to its own end
    for delay in (0.0, 0.05, 0.11, 0.16, 0.23):
        p = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert p.stdout is not None
        with p.stdout:
            p.stdout.readline()
            time.sleep(delay)
            p.kill()
            p.wait()
        until(lambda: procfs.descriptors(g.pid) == before and not procfs.status(g.pid).tracer, "as it was before")
    assert not tracked(g.pid)
    assert g.ask("all").endswith("wrong=0")


def test_an_interrupted_sleep_goes_on(run: Callable[..., Run]) -> None:
    g = run(sys.executable, "-c", NANOSLEEP, "1")
    assert g.line() == "up"
    until(lambda: procfs.state(g.pid) == "S", "asleep")
    begun = inject.track({g.pid: hidden(g.pid)})[g.pid]
    assert not isinstance(begun, str)
    os.close(begun[0])
    assert g.line() == "0 0 1.0"


VFORK = """
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>
static char memory[4 << 20];
int main(void) {
    for (unsigned i = 0; i < sizeof memory; i += 4096) memory[i] = 1;
    puts("up"); fflush(stdout);
    if (!vfork()) { sleep(1000); _exit(0); }
    wait(NULL); puts("done"); return 0;
}
"""


def test_a_process_in_vfork_is_left_alone_after_a_while(run: Callable[..., Run], tmp_path: Path) -> None:
    (tmp_path / "vfork.c").write_text(VFORK)
    subprocess.run(["gcc", "-o", tmp_path / "vfork", tmp_path / "vfork.c"], check=True)
    g = run(tmp_path / "vfork")
    assert g.line() == "up"
    until(lambda: procfs.children(g.pid), "its child")
    with pytest.raises(CannotTrack, match="does not come to a stop"):
        WriteTracker([process(g.pid)], Store(), Policy())
    os.kill(procfs.children(g.pid)[0], signal.SIGKILL)
    assert g.line() == "done"


def test_a_process_that_cannot_open_anything_is_left_alone(run: Callable[..., Run]) -> None:
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3)); x = bytearray(8 << 20); print('up', flush=True); input()"
    )
    g = run(sys.executable, "-c", code)
    assert g.line() == "up"
    with pytest.raises(CannotTrack, match="Too many open files"):
        WriteTracker([process(g.pid)], Store(), Policy())
    assert procfs.state(g.pid) == "S" and not procfs.status(g.pid).tracer


def test_direct_io_is_not_tracked(run: Callable[..., Run], tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(PAGE))
    code = "import os, sys; os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT); x = bytearray(8 << 20); print('up', flush=True); input()"
    g = run(sys.executable, "-c", code, tmp_path / "f")
    assert g.line() == "up"
    with pytest.raises(CannotTrack, match="direct I/O"):
        WriteTracker([process(g.pid)], Store(), Policy())


def test_a_process_of_another_user_is_tracked(guests: Guests, run: Callable[..., Run]) -> None:
    code = "import os, sys; os.setgid(1000); os.setuid(1000); x = bytearray(b'x' * (8 << 20)); print('up', flush=True); input()"
    g = run(sys.executable, "-c", code)
    assert g.line() == "up"
    tracker = WriteTracker([process(g.pid)], Store(), Policy())
    try:
        assert tracker.rounds().bytes >= 8 * MIB
    finally:
        tracker.close()


def test_a_stopped_process_stays_stopped(guests: Guests, run: Callable[..., Run]) -> None:
    g = run(guests.verify, "-m", 8, "-p", 1000)
    g.line()
    os.kill(g.pid, signal.SIGSTOP)
    until(lambda: procfs.state(g.pid) == "T", "stopped")
    tracker = WriteTracker([process(g.pid)], store := Store(), Policy())
    try:
        tracker.rounds()
        until(lambda: procfs.state(g.pid) == "T", "stopped again")
        check(store, tracker.current([process(g.pid)]), g.pid)
    finally:
        tracker.close()
    os.kill(g.pid, signal.SIGCONT)
    assert g.ask("all").endswith("wrong=0")


def test_this_kernel_can(run: Callable[..., Run]) -> None:
    assert written.available()


def test_batches_and_intersections() -> None:
    ranges = [(0, 3 * PAGE), (8 * PAGE, 8 * PAGE + 300 * 1024)]
    got = list(batches(ranges))
    assert [r for b in got for r in b if r[0] < 8 * PAGE] == [(0, 3 * PAGE)]
    assert all(sum(e - s for s, e in b) <= 256 << 10 for b in got)
    assert sum(e - s for b in got for s, e in b) == sum(e - s for s, e in ranges)
    assert intersect([(0, 10), (20, 30)], [(5, 22), (25, 26), (29, 40)]) == [(5, 10), (20, 22), (25, 26), (29, 30)]
