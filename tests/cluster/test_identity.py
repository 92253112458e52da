"""What a process is told about itself and where it is: the same on every node as at home."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from .helpers import servant, where

IDENTITY = """dict(
    pid=os.getpid(), ppid=os.getppid(), sid=os.getsid(0), pgid=os.getpgid(0), tid=threading.get_native_id(),
    host=socket.gethostname(), uname=os.uname().nodename, cwd=os.getcwd(), root=os.stat('/').st_ino, umask=(os.umask(0o27), os.umask(0o27)),
    uids=os.getresuid(), gids=os.getresgid(), groups=sorted(os.getgroups()), env=sorted(os.environ.items()), argv=sys.argv,
    exe=os.readlink('/proc/self/exe'), cmdline=open('/proc/self/cmdline').read(), proc=os.readlink('/proc/self'),
    priority=os.getpriority(os.PRIO_PROCESS, 0), hostname_file=open('/etc/hostname').read() if os.path.exists('/etc/hostname') else '',
    passwd=open('/etc/passwd').read(), marker=open('/etc/only-at-home').read(), ids=open('/proc/self/stat').read().split()[:7][3:6],
    caps=[l for l in open('/proc/self/status') if l.startswith('Cap')], fds=sorted(os.listdir('/proc/self/fd'))[:3],
    handler=signal.getsignal(signal.SIGUSR2) is signal.SIG_IGN, mask=sorted(int(s) for s in signal.pthread_sigmask(signal.SIG_BLOCK, [])),
)"""


@pytest.mark.parametrize("uid", [0, 1000])
def test_all_is_as_at_home(lab: Any, uid: int) -> None:
    lab.run("n1", "echo home > /etc/only-at-home && chmod 644 /etc/only-at-home", check=True)
    lab.run("n1", "mkdir -p /tmp/identity && chmod 777 /tmp/identity", check=True)
    with servant(lab, uid, env={"ONLY": "here äö"}, cwd="/tmp/identity") as s:
        s.do("os.umask(0o27); os.nice(3); signal.signal(signal.SIGUSR2, signal.SIG_IGN)")
        s.do("signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])")
        s.do("m = time.monotonic(); w = time.time(); b = time.clock_gettime(time.CLOCK_BOOTTIME)")
        home = s.ask(IDENTITY)
        assert home["host"] == "n1" and home["uids"] == (uid,) * 3 and home["cwd"] == "/tmp/identity"
        for to in ("n2", "n3", "home", "n2"):
            s.move(to)
            assert where(lab, s.pid) == (to if to != "home" else "n1")
            assert s.ask(IDENTITY) == home, f"on {to}"
            # all clocks have gone on, together
            monotonic, wall, boot = s.ask("(time.monotonic() - m, time.time() - w, time.clock_gettime(time.CLOCK_BOOTTIME) - b)")
            assert monotonic > 0 and monotonic == pytest.approx(wall, abs=0.5) and boot == pytest.approx(wall, abs=0.5)
        assert s.end() == 0
    lab.wait_for(lambda: where(lab, s.pid) == "", what="mosps forgets a guest that ended")


def test_supplementary_groups(lab: Any) -> None:
    lab.run("n1", "groupadd -g 4711 many; usermod -aG many nobody; echo x > /tmp/grp; chgrp 4711 /tmp/grp; chmod 040 /tmp/grp", check=True)
    with servant(lab, 65534) as s:
        groups = s.ask("sorted(os.getgroups())")
        assert 4711 in groups
        for to in ("n2", "home"):
            s.move(to)
            assert s.ask("sorted(os.getgroups())") == groups
            assert s.ask("open('/tmp/grp').read()") == "x\n"


@pytest.mark.parametrize("to", ["n2", "home"])
def test_signals_to_the_pid_at_home(lab: Any, to: str) -> None:
    with servant(lab) as s:
        s.do("got = []; f = lambda n, _: got.append(int(n))")
        s.do("caught = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP, signal.SIGCONT, signal.SIGRTMIN + 3)")
        s.do("for n in caught: signal.signal(n, f)")
        s.move("n2")
        if to == "home":
            s.move(to)
        numbers = [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP, signal.SIGRTMIN + 3]
        for n in numbers:
            lab.run("n1", f"kill -{int(n)} {s.pid}", check=True)
            lab.wait_for(lambda n=n: int(n) in s.ask("got"), what=f"signal {n}")
        assert s.ask("got") == [int(n) for n in numbers], "each once"


@pytest.mark.parametrize("to", ["n2", "home"])
def test_stop_and_continue(lab: Any, to: str) -> None:
    with servant(lab) as s:
        s.do("beats = [0]; stop = [0]")
        s.do("def beat():\n while not stop[0]:\n  beats[0] += 1; os.pwrite(fd, b'%9d' % beats[0], 0); time.sleep(.02)")
        s.do("fd = os.open('/tmp/beats', os.O_RDWR | os.O_CREAT); threading.Thread(target=beat, daemon=True).start()")
        s.move("n2")
        if to == "home":
            s.move(to)

        def beats() -> int:
            return int(lab.path("n1", "/tmp/beats").read_text())

        def goes_on() -> bool:
            before = beats()
            lab.wait_for(lambda: beats() > before)
            return True

        assert goes_on()
        lab.signal("n1", s.pid, signal.SIGSTOP)

        def state() -> str:
            return str(lab.path("n1", f"/proc/{s.pid}/stat").read_text().rpartition(")")[2].split()[0])

        def stands() -> bool:
            before = beats()
            lab.run("n1", "sleep 0.3")
            return beats() == before

        lab.wait_for(stands, what="the guest stands")
        lab.wait_for(lambda: state() == "T", what="what stands for it at home is stopped too")
        lab.signal("n1", s.pid, signal.SIGCONT)
        assert goes_on()
        lab.wait_for(lambda: state() != "T")
        s.do("stop[0] = 1")


@pytest.mark.parametrize("to", ["n2", "home"])
def test_sigkill(lab: Any, to: str) -> None:
    with servant(lab) as s:
        s.do("import threading; threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()")
        s.move("n2")
        if to == "home":
            s.move(to)
        lab.signal("n1", s.pid, signal.SIGKILL)
        assert s.wait() == 137
        lab.wait_for(lambda: where(lab, s.pid) == "", what="the guest is gone")
        lab.wait_for(lambda: lab.run("n2", "ls /run/mig/keepers").stdout == "", what="its keeper is gone")


@pytest.mark.parametrize(("line", "status"), [("os._exit(37)", 37), ("os.abort()", 134), ("os.kill(os.getpid(), signal.SIGTERM)", 143)])
def test_the_way_it_ends(lab: Any, line: str, status: int) -> None:
    with servant(lab) as s:
        s.move("n2")
        s.begin(line)
        assert s.wait() == status


CALLS = {
    "sleep": "(time.sleep({0}), 'slept')[1]",
    "poll": "(lambda p: (p.register(r, select.POLLIN), p.poll({0} * 1000))[1])(select.poll())",
    "select": "select.select([r], [], [], {0})",
    "epoll": "(lambda p: (p.register(r, select.EPOLLIN), p.poll({0}))[1])(select.epoll())",
    "nanosleep": "libc.nanosleep(ctypes.byref((ctypes.c_long * 2)({0}, 0)), None)",
    "raw_poll": "libc.poll(None, 0, {0} * 1000)",
    "futex": "threading.Event().wait({0})",
    "read": "os.read(r, 1)",
}
"""Python hides EINTR by trying again; those through libc show it."""


@pytest.mark.parametrize("call", sorted(CALLS))
def test_a_call_that_waits_goes_on(lab: Any, call: str) -> None:
    seconds = 4
    with servant(lab) as s:
        s.do("r, wr = os.pipe(); libc = ctypes.CDLL(None)")
        s.do("def late():\n time.sleep(4); os.write(wr, b'x')")
        if call == "read":
            s.do("threading.Thread(target=late, daemon=True).start()")
        s.do("t = time.monotonic()")
        s.begin(CALLS[call].format(seconds))
        s.move("n2")
        s.move("home")
        expected = {"sleep": "slept", "select": ([], [], []), "nanosleep": 0, "raw_poll": 0, "futex": False, "read": b"x"}.get(call, [])
        assert s.answer() == expected
        assert seconds - 0.2 <= s.ask("time.monotonic() - t") < seconds + 15
