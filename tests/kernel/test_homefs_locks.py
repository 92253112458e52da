"""Locks of a guest are home's locks: seen by home's processes, handed from host to host, and gone with the mount."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from mig.kernel import cgroup
from tests.kernel.homefs_host import Home, Host, home, host, stop

__all__ = ["home", "host"]

HOLD_FLOCK = """
    fd = os.open("file", os.O_RDWR | os.O_CREAT); fcntl.flock(fd, fcntl.LOCK_EX)
    say("held"); sys.stdin.readline()
"""
HOLD_POSIX = """
    f = open("file", "r+b"); fcntl.lockf(f, fcntl.LOCK_EX, 10, 100); fcntl.lockf(f, fcntl.LOCK_SH, 5, 500)
    fcntl.lockf(f, fcntl.LOCK_UN, 2, 104)
    say("held"); sys.stdin.readline()
"""
TRY_FLOCK = """
    try: fcntl.flock(os.open("file", os.O_RDWR | os.O_CREAT), fcntl.LOCK_EX | fcntl.LOCK_NB); say("free")
    except BlockingIOError: say("taken")
"""
TRY_POSIX = """
    f = open("file", "r+b")
    def free(start, n, kind=fcntl.LOCK_EX):
        try: fcntl.lockf(f, kind | fcntl.LOCK_NB, n, start); return "free"
        except BlockingIOError: return "taken"
    say(" ".join([free(0, 100), free(100, 4), free(104, 2), free(106, 4), free(500, 5), free(500, 5, fcntl.LOCK_SH)]))
"""


def eventually(ask: Callable[[], Any], wanted: Any) -> None:
    """What is told asynchronously (a RELEASE, the end of a connection) arrives within seconds."""
    end = time.monotonic() + 10
    while (got := ask()) != wanted:
        assert time.monotonic() < end, got
        time.sleep(0.01)


def test_flock_holds_at_both_ends(home: Home, host: Host) -> None:
    for here, there in ((home, host), (host, home)):
        holder = here.start(HOLD_FLOCK)
        assert holder.line() == "held"
        assert there.run(TRY_FLOCK) == "taken"
        holder.end()
        eventually(lambda there=there: there.run(TRY_FLOCK), "free")


def test_fcntl_ranges_hold_at_both_ends_and_go_with_any_close(home: Home, host: Host) -> None:
    home.run('open("file", "wb").write(b"x" * 1000)')
    for here, there in ((home, host), (host, home)):
        holder = here.start(HOLD_POSIX + '    open("file").close()\n    say("closed"); sys.stdin.readline()')
        assert holder.line() == "held"
        assert there.run(TRY_POSIX) == "free taken free taken taken free"
        holder.go_on()
        assert holder.line() == "closed"
        assert there.run(TRY_POSIX) == "free free free free free free"
        holder.end()


def test_the_lock_table_is_what_the_kernel_holds(home: Home, host: Host) -> None:
    home.run('open("file", "wb").write(b"x" * 1000)')
    st = os.stat(home.here + "/file")
    with_flock, with_posix = host.start(HOLD_FLOCK), host.start(HOLD_POSIX)
    assert with_flock.line() == with_posix.line() == "held"
    rows = home.ask("locks")["locks"]
    assert {(r["dev"], r["ino"], r["mount"]) for r in rows} == {(st.st_dev, st.st_ino, host.mount_id)}
    assert sorted((r["kind"], r["type"], r["start"], r["len"], r["pid"]) for r in rows) == [
        ("flock", "write", 0, 0, with_flock.pid),
        ("posix", "read", 500, 5, with_posix.pid),
        ("posix", "write", 100, 4, with_posix.pid),
        ("posix", "write", 106, 4, with_posix.pid),
    ]
    for s in (with_flock, with_posix):
        s.end()
    eventually(lambda: home.ask("locks")["locks"], [])


def test_a_waiting_lock_is_granted_when_it_becomes_free(home: Home, host: Host) -> None:
    for lock in ("fcntl.flock(f, fcntl.LOCK_EX)", "fcntl.lockf(f, fcntl.LOCK_EX)"):
        code = f'f = open("file", "a"); say("asks"); {lock}; say("held"); sys.stdin.readline()'
        first = home.start(code)
        assert (first.line(), first.line()) == ("asks", "held")
        second = host.start(code)
        assert second.line() == "asks"
        assert host.run("print(1 + 1)") == "2"  # the channel serves others meanwhile
        first.end()
        assert second.line() == "held"
        second.end()


def test_a_waiting_lock_can_be_interrupted_frozen_and_killed(home: Home, host: Host) -> None:
    holder = home.start(HOLD_FLOCK)
    assert holder.line() == "held"
    host.run("""
        import signal
        def ring(*a): raise TimeoutError
        signal.signal(signal.SIGALRM, ring)
        f = open("file", "a")
        for i in range(5):
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            try: fcntl.flock(f, fcntl.LOCK_EX)
            except TimeoutError: pass
            else: raise AssertionError("got it")
    """)
    waiting = host.start('f = open("file", "a"); say("asks"); fcntl.flock(f, fcntl.LOCK_EX); say("held"); sys.stdin.readline()')
    assert waiting.line() == "asks"
    group = cgroup.Cgroup(cgroup.root() / f"mig-test-homefs-{os.getpid()}")
    group.create()
    try:
        group.add(waiting.pid)
        group.freeze()
        group.thaw()
        holder.end()
        assert waiting.line() == "held"
        waiting.end()
    finally:
        group.kill()
        group.remove()
    holder = home.start(HOLD_FLOCK)
    assert holder.line() == "held"
    waiting = host.start('f = open("file", "a"); say("asks"); fcntl.flock(f, fcntl.LOCK_EX)')
    assert waiting.line() == "asks"
    stop(waiting)
    holder.end()
    assert home.run(TRY_FLOCK) == "free"


def test_locks_are_handed_from_one_mount_to_another_and_back(home: Home, host: Host) -> None:
    home.run('open("file", "wb").write(b"x" * 1000)')
    other = home.host()
    flock, posix = host.start(HOLD_FLOCK), host.start(HOLD_POSIX)
    assert flock.line() == posix.line() == "held"
    before = home.ask("locks")["locks"]
    assert other.run(TRY_FLOCK) == "taken"
    assert home.ask("unlock", mount=host.mount_id) == {"op": "unlocked"}
    assert home.ask("locks")["locks"] == []
    assert other.run(TRY_FLOCK) == "free"
    eventually(lambda: home.ask("locks")["locks"], [])
    assert home.ask("relock", mount=host.mount_id) == {"op": "relocked", "lost": 0}
    assert home.ask("locks")["locks"] == before
    for s in (flock, posix):
        s.end()


def test_fcntl_locks_of_the_frozen_original_are_inherited(home: Home, host: Host) -> None:
    home.run('open("file", "wb").write(b"x" * 1000)')
    original = home.start('f = open("file", "r+b"); fcntl.lockf(f, fcntl.LOCK_EX, 10, 100); say("held"); sys.stdin.readline()')
    stranger = home.start('f = open("file", "r+b"); fcntl.lockf(f, fcntl.LOCK_EX, 10, 200); say("held"); sys.stdin.readline()')
    assert original.line() == stranger.line() == "held"
    assert home.ask("inherit", pids=[original.pid]) == {"op": "inherit"}
    guest = host.start("""
        f = open("file", "r+b")
        fcntl.lockf(f, fcntl.LOCK_EX, 10, 100)
        assert fails(fcntl.lockf, f, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 200) == "EAGAIN"
        say("restored"); sys.stdin.readline()
    """)
    assert guest.line() == "restored"
    original.end()

    def table() -> list[tuple[int, int, str]]:
        return [(r["start"], r["len"], r["type"]) for r in home.ask("locks")["locks"]]

    eventually(table, [(100, 10, "write")])
    assert home.run(TRY_POSIX).split()[1] == "taken"
    guest.end()
    stranger.end()
    eventually(table, [])


def test_all_locks_and_handles_go_with_the_mount(home: Home, host: Host) -> None:
    home.run('open("file", "wb").write(b"x" * 1000)')
    flock, posix = host.start(HOLD_FLOCK), host.start(HOLD_POSIX)
    assert flock.line() == posix.line() == "held"
    os.kill(host.pumps[1], 9)
    eventually(lambda: home.ask("mounts")["mounts"], [])
    assert home.ask("locks")["locks"] == []
    assert home.run(TRY_POSIX) == "free free free free free free"
    eventually(lambda: [f for f in os.listdir(f"/proc/{home.pid}/fd") if int(f) > 2 and _leads_to(home, f)], [])
    stop(flock)
    stop(posix)


def _leads_to(home: Home, fd: str) -> bool:
    try:
        return os.readlink(f"/proc/{home.pid}/fd/{fd}").startswith(home.here)
    except FileNotFoundError:
        return False
