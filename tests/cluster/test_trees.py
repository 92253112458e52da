"""Parents with children, and threads: they move as one, and go on together."""

from __future__ import annotations

import os
from typing import Any

import pytest

from .helpers import Servant, own_server, servant, where

FAMILY = """
got = []
signal.signal(signal.SIGUSR1, lambda n, _: got.append(int(n)))
def descend(depth):
    r, down = os.pipe(); up, w = os.pipe()
    pid = os.fork()
    if pid:
        os.close(r); os.close(w)
        return pid, down, up
    os.close(down); os.close(up)
    below = descend(depth - 1) if depth else None
    if depth:
        os.setpgid(0, 0)
    while line := os.read(r, 1000):
        answer = line
        if line == b'who':
            answer = repr((os.getpid(), os.getppid(), os.getpgid(0), os.getsid(0), socket.gethostname(), len(got))).encode()
        if line == b'kill':
            os.kill(os.getppid(), signal.SIGUSR1)
        if below:
            os.write(below[1], line)
            answer += b' ' + os.read(below[2], 1000)
        os.write(w, answer)
    if below:
        os.close(below[1])
        os._exit(os.waitstatus_to_exitcode(os.waitpid(below[0], 0)[1]) + 1)
    os._exit(40)
"""


def family(s: Servant) -> None:
    """Give it a child and a grandchild in a process group of the child's."""
    s.do(FAMILY)
    s.do("child, down, up = descend(1)")


def ask(s: Servant, word: str) -> str:
    """What child and grandchild say."""
    s.do(f"os.write(down, {word.encode()!r})")
    return str(s.ask("os.read(up, 1000).decode()"))


@pytest.mark.parametrize("uid", [0, 1000])
def test_a_family_goes_round(lab: Any, uid: int) -> None:
    with servant(lab, uid) as s:
        family(s)
        home = ask(s, "who")
        parent = s.ask("(os.getpid(), os.getppid(), os.getpgid(0), os.getsid(0))")
        for to in ("n2", "n3", "home", "n2"):
            s.move(to)
            assert ask(s, "who") == home, to
            assert s.ask("(os.getpid(), os.getppid(), os.getpgid(0), os.getsid(0))") == parent
            assert ask(s, f"hello {to}") == f"hello {to} hello {to}"
            # until their last page has arrived, the members' old bodies and the holder of the root's memory stay
            lab.wait_for(lambda: lab.children("n1", s.pid) == [], what="only one process stands for the tree at home")
        s.do("os.close(down)")
        assert s.ask("os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])") == 41
        assert s.end() == 0


@pytest.mark.parametrize("to", ["n2", "home"])
def test_signals_between_members(lab: Any, to: str) -> None:
    with servant(lab) as s:
        family(s)
        s.move("n2")
        if to == "home":
            s.move(to)
        ask(s, "kill")
        lab.wait_for(lambda: s.ask("len(got)") == 1, what="the child's signal reaches the parent")
        lab.wait_for(lambda: ", 1) (" in ask(s, "who"), what="the grandchild's signal reaches the child")
        s.do("os.kill(child, signal.SIGKILL)")
        assert s.ask("os.waitpid(child, 0)[1]") == 9


@pytest.mark.parametrize("to", ["n2", "home"])
def test_children_born_on_the_way(lab: Any, to: str) -> None:
    with servant(lab) as s:
        s.move("n2")
        family(s)
        before = ask(s, "who")
        s.move("n3")
        assert ask(s, "who") == before
        s.move(to)
        assert ask(s, "who") == before
        assert s.ask("subprocess.run(['sh', '-c', 'sleep 0.05 & wait; echo $0'], capture_output=True).stdout") == b"sh\n"


def test_all_end_with_the_root_killed_at_home(lab: Any) -> None:
    with servant(lab) as s:
        family(s)
        s.move("n2")
        lab.signal("n1", s.pid, 9)
        assert s.wait() == 137
        lab.wait_for(lambda: "servant" not in lab.run("n2", "ps axo args").stdout, what="nothing of it is left on the host")


SERVER = own_server("""
def serve(c):
    while data := c.recv(100):
        c.send(data.upper())
while True:
    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
""")


@pytest.mark.parametrize("uid", [0, 1000])
def test_a_socket_for_its_own_processes_goes_along(lab: Any, uid: int) -> None:
    """By its name and by the connections that there are; not unless its user says so."""
    with servant(lab, uid) as s:
        s.do(f"{SERVER}\nold = connected()")
        r = lab.run("n1", ["migrate", str(s.pid), "n2"])
        assert r.returncode == 3 and "offers a unix socket to others" in r.stderr and "--own-sockets" in r.stderr, r.stderr
        lab.run("n1", ["migrate", "--own-sockets", str(s.pid), "n2"], check=True)
        modes = s.ask("(os.stat(name).st_mode, os.stat(name).st_uid)")
        for to in ("n3", "home", "n2", "home"):
            assert s.ask("say(old, b'old'), say(connected(), b'new')") == (b"OLD", b"NEW")
            s.move(to)
        assert s.ask("say(old, b'old'), say(connected(), b'new')") == (b"OLD", b"NEW")
        assert s.ask("(os.stat(name).st_mode, os.stat(name).st_uid)") == modes and modes[1] == uid


UNHURRIED = "accept, go = os.pipe()" + own_server("""
def serve(c):
    while data := c.recv(100):
        c.send(data.upper())
        if data == b"bye": break
    c.close()
while os.read(accept, 1):
    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
""")


def test_a_connection_that_waits_to_be_accepted(lab: Any) -> None:
    """It goes along as long as nothing was sent on it; what was sent cannot be read by anybody but who accepts, so the move is given up."""
    with servant(lab) as s:
        s.do(UNHURRIED)
        s.do("first, second = connected(), connected()")
        lab.run("n1", ["migrate", "--own-sockets", str(s.pid), "n2"], check=True)
        s.move("n3")
        s.do("first.send(b'early')")
        r = lab.run("n1", ["migrate", str(s.pid), "home"])
        assert r.returncode == 4 and "data on a connection by a unix socket that is not accepted yet; still running on n3" in r.stderr, (
            r.stderr
        )
        s.do("os.write(go, b'x')")
        assert s.ask("first.recv(100)") == b"EARLY"
        s.move("home")
        s.do("os.write(go, b'x')")
        assert s.ask("say(first, b'old'), say(second, b'new')") == (b"OLD", b"NEW")
        s.do("third = connected(); third.close()")
        r = lab.run("n1", ["migrate", str(s.pid), "n2"])
        assert r.returncode == 4 and "closed before it was accepted; still running on n1" in r.stderr, r.stderr
        s.do("os.write(go, b'x'); time.sleep(0.2)")
        s.move("n2")
        assert s.ask("say(first, b'old'), say(second, b'new')") == (b"OLD", b"NEW")


def test_a_connection_of_which_one_end_is_closed(lab: Any) -> None:
    """What was sent before is still to be read, then comes the end."""
    with servant(lab) as s:
        s.do(UNHURRIED)
        s.do("c = connected(); os.write(go, b'x'); c.send(b'bye'); time.sleep(0.3)")
        lab.run("n1", ["migrate", "--own-sockets", str(s.pid), "n2"], check=True)
        for to in ("n3", "home"):
            s.move(to)
        assert s.ask("c.recv(100), c.recv(100)") == (b"BYE", b"")


def test_a_connection_that_a_stranger_has_not_accepted(lab: Any) -> None:
    """Nobody could make it anew elsewhere: the process stays, and its connection too."""
    name = f"/tmp/stranger-{os.getpid()}"
    listen = f"signal.signal(10, lambda *_: None); s = socket.socket(socket.AF_UNIX); s.bind({name!r}); s.listen(); signal.pause()"
    code = f"import signal, socket, time; {listen}; s.accept()[0].send(b'hello'); time.sleep(600)"
    stranger = lab.spawn("n1", ["python3", "-S", "-c", code])
    lab.wait_for(lambda: lab.path("n1", name).exists(), what="the stranger listens")
    with servant(lab) as s:
        s.do(f"c = socket.socket(socket.AF_UNIX); c.connect({name!r})")
        r = lab.run("n1", ["migrate", str(s.pid), "n2"])
        assert r.returncode == 4 and "outside of its tree has not accepted yet; still running on n1" in r.stderr, r.stderr
        lab.signal("n1", stranger, 10)
        assert s.ask("c.recv(100)") == b"hello"


@pytest.mark.parametrize("uid", [0, 1000])
def test_threads(lab: Any, uid: int) -> None:
    with servant(lab, uid) as s:
        s.do("counts = [0] * 12; ids = [0] * 12; turn = threading.Condition(); whose = [0]")
        s.do(
            "def work(i):\n ids[i] = threading.get_native_id()\n while whose[0] >= 0:\n"
            "  with turn:\n   turn.wait_for(lambda: whose[0] in (i, -1)); counts[i] += 1\n"
            "   whose[0] = (i + 1) % 12 if whose[0] >= 0 else -1; turn.notify_all()\n  time.sleep(.001)"
        )
        s.do("ts = [threading.Thread(target=work, args=(i,)) for i in range(12)]; [t.start() for t in ts]")
        ids = s.ask("ids")
        for to in ("n2", "n3", "home"):
            s.move(to)
            before = s.ask("list(counts)")
            lab.wait_for(lambda b=before: min(x - y for x, y in zip(s.ask("list(counts)"), b, strict=True)) > 2, what="all threads go on")
            assert s.ask("ids") == ids and s.ask("sorted(int(t) for t in os.listdir('/proc/self/task'))")[1:] == sorted(ids)
        s.do("whose[0] = -1\nwith turn: turn.notify_all()\n[t.join(10) for t in ts]")
        counts = s.ask("counts")
        assert max(counts) - min(counts) <= 2, "each took its turn"
        assert s.end() == 0


def test_what_the_kernel_keeps_for_a_process(lab: Any) -> None:
    """Timers, eventfds, epoll sets, pairs of sockets, pipes with content: between members of a tree they stay what they are."""
    with servant(lab) as s:
        s.do("alarms = []; signal.signal(signal.SIGALRM, lambda n, _: alarms.append(time.monotonic()))")
        s.do("start = time.monotonic(); signal.setitimer(signal.ITIMER_REAL, 5)")
        s.do("a, b = socket.socketpair(); a.send(b'in flight'); r, w = os.pipe(); os.write(w, b'in the pipe')")
        s.do("e = select.epoll(); e.register(r, select.EPOLLIN); v = os.eventfd(7)")
        s.do("q = os.memfd_create('q'); os.write(q, b'memory')")
        for to in ("n2", "home"):
            s.move(to)
            assert s.ask("e.poll(1) == [(r, select.EPOLLIN)]")
            assert s.ask("os.pread(q, 10, 0)") == b"memory"
        assert s.ask("(b.recv(100), os.read(r, 100), os.eventfd_read(v))") == (b"in flight", b"in the pipe", 7)
        lab.wait_for(lambda: s.ask("len(alarms)") == 1, 10, "the timer")
        assert s.ask("alarms[0] - start") > 4.9
        assert where(lab, s.pid) == "n1"
