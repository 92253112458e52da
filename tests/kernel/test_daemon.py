"""Two real omdiscd's: they find each other, see each other go, and answer every bad order with the right error."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgpack
import psutil
import pytest
import zmq

from mig.errors import MigError

OMDISCD = str(Path(sys.prefix) / "bin" / "omdiscd")


def free_port() -> int:
    """A port that is free on loopback for TCP and UDP, below those that the kernel gives away by itself."""
    for port in random.Random().sample(range(20000, 30000), 100):
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp, contextlib.suppress(OSError):
            tcp.bind(("", port))
            udp.bind(("", port))
            return port
    raise OSError("no port is free")


PORT = free_port()
FAST = "gossip_s = 0.1\nhello_s = 0.3\nsuspect_s = 0.6\ndead_s = 1.2\nsample_s = 0.2\nspeed = 1.0\nallow_root_guests = true\n"


class Node:
    """One omdiscd with directories of its own."""

    def __init__(self, base: Path, name: str, config: str, *, key: bool = True, netns: int = 0) -> None:
        self.run = base / name
        self.run.mkdir(mode=0o755)
        self.config = self.run / "omdiscd.toml"
        self.config.write_text(f'name = "{name}"\n{FAST}{config}')
        self.key, self.netns, self.log = (base / "key" if key else base / "none"), netns, self.run / "log.txt"
        self.process: subprocess.Popen[bytes] | None = None
        self.notify: list[bytes] = []

    def start(self, *args: str, wait: bool = True) -> Node:
        env = {**os.environ, "MIG_RUN": str(self.run / "mig"), "MIG_KEY": str(self.key)}
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, open(self.log, "ab") as out:
            ready.bind(str(self.run / "notify"))
            ready.settimeout(15)
            env["NOTIFY_SOCKET"] = str(self.run / "notify")
            enter = ["nsenter", f"--net=/proc/{self.netns}/ns/net"] if self.netns else []
            self.process = subprocess.Popen([*enter, OMDISCD, "-n", "-c", str(self.config), *args], stdout=out, stderr=out, env=env)
            if wait:
                assert ready.recv(100) == b"READY=1"
        (self.run / "notify").unlink()
        return self

    def stop(self, sig: int = signal.SIGTERM) -> int:
        assert self.process
        self.process.send_signal(sig)
        status = self.process.wait(15)
        self.process = None
        return status

    def ask(self, op: str, **m: Any) -> dict[str, Any]:
        """The last answer; raises its error."""
        return ask(self.run / "mig" / "control.sock", op, **m)

    def states(self) -> dict[str, str]:
        return {n["name"]: n["state"] for n in self.ask("status")["nodes"]}


def ask(path: Path, op: str, **m: Any) -> dict[str, Any]:
    with zmq.Context() as context, context.socket(zmq.DEALER) as s:
        s.setsockopt(zmq.LINGER, 0)
        s.setsockopt(zmq.RCVTIMEO, 30_000)
        s.connect(f"ipc://{path}")
        s.send(msgpack.packb({"v": 1, "id": 1, "op": op, **m}))
        while (a := msgpack.unpackb(s.recv())).get("more"):
            pass
    if not a["ok"]:
        raise MigError.from_wire(a["error"])
    return dict(a)


def until(true: Callable[[], Any], what: str = "") -> None:
    end = time.monotonic() + 15
    while not true():
        assert time.monotonic() < end, what or "it did not become true in 15 s"
        time.sleep(0.02)


def refused(code: str, node: Node, **m: Any) -> str:
    """The words of the error that the order must give."""
    with pytest.raises(MigError) as e:
        node.ask("migrate", **m)
    assert e.value.code == code, e.value.lines()
    return "\n".join(e.value.lines())


@pytest.fixture
def base(tmp_path: Path) -> Path:
    # sockets have short names
    (tmp_path / "key").write_bytes(os.urandom(32))
    (tmp_path / "key").chmod(0o600)
    for d in (tmp_path, *tmp_path.parents):
        if d.stat().st_mode & 0o001 == 0:
            d.chmod(d.stat().st_mode | 0o011)  # the other user of a test must reach the control socket
    return tmp_path


@pytest.fixture
def nodes(base: Path) -> Iterator[tuple[Node, Node]]:
    config = f'port = {PORT}\nmulticast = ""\nseeds = ["127.0.0.1", "127.0.0.2"]\n'
    n1, n2 = (Node(base, f"n{i}", f'addr = "127.0.0.{i}"\n{config}') for i in (1, 2))
    try:
        n1.start()
        n2.start()
        until(lambda: n1.states() == n2.states() == {"n1": "alive", "n2": "alive"})
        yield n1, n2
    finally:
        for n in (n1, n2):
            if n.process:
                n.stop()


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that could move."""
    with subprocess.Popen(["sleep", "1000"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as p:
        yield p
        p.kill()


def test_they_see_each_other_go_and_come_back(nodes: tuple[Node, Node]) -> None:
    n1, n2 = nodes
    assert n2.stop(signal.SIGKILL) == -signal.SIGKILL
    until(lambda: n1.states()["n2"] == "dead")
    n2.start()
    until(lambda: n1.states()["n2"] == "alive")
    assert n2.stop() == 0
    until(lambda: n1.states()["n2"] == "left", "a node that is stopped says so")
    kinds = [(e["to"], e["outcome"]) for e in n1.ask("events")["events"] if e["kind"] == "node"]
    assert [k for k in kinds if k[1] != "suspect"] == [("n2", "alive"), ("n2", "dead"), ("n2", "alive"), ("n2", "left")]
    assert not (n2.run / "mig" / "control.sock").exists()


def test_whois_takes_name_id_and_address(nodes: tuple[Node, Node]) -> None:
    n1, _ = nodes
    for text in ("n2", "2", "127.0.0.2"):
        assert n1.ask("whois", node=text)["node"]["name"] == "n2"
    with pytest.raises(MigError) as e:
        n1.ask("whois", node="n9")
    assert e.value.code == "bad-input" and "n1, n2" in e.value.hint


def test_block_reaches_the_other_and_outlives_the_daemon(nodes: tuple[Node, Node], sleeper: subprocess.Popen[bytes]) -> None:
    n1, n2 = nodes
    n2.ask("block")
    until(lambda: n1.ask("whois", node="n2")["node"]["accepting"] is False)
    assert "blocked" in refused("cannot-move", n1, pid=sleeper.pid, to="n2")
    n2.stop()
    n2.start()
    assert n2.ask("status", node="n2")["nodes"][0]["accepting"] is False
    n2.ask("noblock")
    until(lambda: n1.ask("whois", node="n2")["node"]["accepting"] is True)


def test_bad_orders(nodes: tuple[Node, Node], sleeper: subprocess.Popen[bytes]) -> None:
    n1, n2 = nodes
    assert "no process" in refused("bad-input", n1, pid=4_000_000, to="n2")
    assert "init" in refused("bad-input", n1, pid=1, to="n2")
    for wrong in (0, -5, "17", None, 1.5, True):
        assert "not a process id" in refused("bad-input", n1, pid=wrong, to="n2")
    assert "n9" in refused("bad-input", n1, pid=sleeper.pid, to="n9")
    assert "already" in refused("bad-input", n1, pid=sleeper.pid, to="n1")
    assert "already" in refused("bad-input", n1, pid=sleeper.pid, to="home")
    assert "destination" in refused("bad-input", n1, pid=sleeper.pid, to="")
    assert "timeout" in refused("bad-input", n1, pid=sleeper.pid, to="n2", timeout=-1)
    assert n1.process
    assert "omdiscd itself" in refused("bad-input", n1, pid=n1.process.pid, to="n2")
    n2.stop()
    assert "left" in refused("cannot-move", n1, pid=sleeper.pid, to="n2")
    assert sleeper.poll() is None


def test_threads_and_zombies_are_named(nodes: tuple[Node, Node]) -> None:
    n1, _ = nodes
    code = (
        "import threading,time; t=threading.Thread(target=time.sleep,args=(1000,),daemon=True); t.start();"
        "print(t.native_id,flush=True); time.sleep(1000)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as p:
        assert p.stdout
        tid = int(p.stdout.readline())
        assert f"migrate {p.pid}" in refused("bad-input", n1, pid=tid, to="n2")
        p.kill()
        until(lambda: psutil.Process(p.pid).status() == psutil.STATUS_ZOMBIE)
        assert "has ended" in refused("bad-input", n1, pid=p.pid, to="n2")
    kernel = next((q.pid for q in psutil.process_iter() if q.pid == 2 and q.name() == "kthreadd"), 0)
    if kernel:  # containers do not see any
        assert "kernel thread" in refused("bad-input", n1, pid=kernel, to="n2")


def test_every_reason_is_listed(nodes: tuple[Node, Node]) -> None:
    n1, n2 = nodes
    n2.ask("block")
    until(lambda: n1.ask("whois", node="n2")["node"]["accepting"] is False)
    code = "import socket,time; s=socket.socket(); s.bind(('127.0.0.1',0)); s.listen(); print(flush=True); time.sleep(1000)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as p:
        assert p.stdout
        p.stdout.readline()
        words = refused("cannot-move", n1, pid=p.pid, to="n2")
        assert "socket" in words and "n2 does not accept guests" in words
        plan = n1.ask("migrate", pid=p.pid, to="n2", dry_run=True)["result"]
        assert plan["plan"] and any("socket" in r for r in plan["reasons"])
        p.kill()


def test_other_users_may_look_and_not_touch(nodes: tuple[Node, Node], sleeper: subprocess.Popen[bytes]) -> None:
    n1, _ = nodes
    path = n1.run / "mig" / "control.sock"
    orders: dict[str, tuple[str, dict[str, Any]]] = {
        "status": ("", {}),
        "guests": ("", {}),
        "migrate": ("not-permitted", {"pid": sleeper.pid, "to": "n2"}),
        "lock": ("not-permitted", {"pid": sleeper.pid}),
        "block": ("not-permitted", {}),
        "job": ("not-permitted", {"pid": sleeper.pid, "flags": {}}),
    }
    for op, (code, m) in orders.items():
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            try:
                ask(path, op, **m)
                os.write(write, b"")
            except MigError as e:
                os.write(write, e.code.encode())
            except BaseException as e:
                os.write(write, repr(e).encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as r:
            assert r.read() == code, op
        os.waitpid(child, 0)


def test_locks_and_jobs_outlive_the_daemon(nodes: tuple[Node, Node], sleeper: subprocess.Popen[bytes]) -> None:
    n1, _ = nodes
    assert n1.ask("job", pid=sleeper.pid, flags={})["hold"] is False
    n1.ask("lock", pid=sleeper.pid)
    n1.stop(signal.SIGKILL)
    n1.start()
    until(lambda: n1.ask("guests", all=True)["guests"])
    (row,) = n1.ask("guests", all=True)["guests"]
    assert (row["role"], row["pid"], row["locked"], row["comm"]) == ("job", sleeper.pid, True, "sleep")
    n1.ask("unlock", pid=sleeper.pid)
    assert n1.ask("guests", all=True)["guests"][0]["locked"] is False
    sleeper.kill()
    sleeper.wait()
    until(lambda: not n1.ask("guests", all=True)["guests"])


def test_why_has_prices_and_a_sentence(nodes: tuple[Node, Node], sleeper: subprocess.Popen[bytes]) -> None:
    n1, _ = nodes
    time.sleep(0.5)
    m = n1.ask("why", pid=sleeper.pid)
    assert [p["node"] for p in m["prices"]] == ["n1", "n2"]
    assert "stays" in m["text"] and m["reasons"]


def test_only_one_daemon(nodes: tuple[Node, Node]) -> None:
    n1, n2 = nodes
    env = {**os.environ, "MIG_RUN": str(n1.run / "mig"), "MIG_KEY": str(n1.key)}
    r = subprocess.run([OMDISCD, "-c", str(n2.config)], env=env, capture_output=True, text=True, timeout=15)
    assert r.returncode == 4 and "already" in r.stderr
    assert n1.states()


def test_a_wrong_key_hears_and_is_heard_by_nobody(nodes: tuple[Node, Node], base: Path) -> None:
    n1, _ = nodes
    (base / "other").write_bytes(os.urandom(32))
    (base / "other").chmod(0o600)
    n3 = Node(base, "n3", f'addr = "127.0.0.3"\nport = {PORT}\nmulticast = ""\nseeds = ["127.0.0.1"]\n')
    n3.key = base / "other"
    n3.start()
    try:
        until(lambda: any(c["name"] == "datagrams" for c in n1.ask("doctor")["checks"]))
        assert list(n3.states()) == ["n3"] and "n3" not in n1.states()
        with socket.create_connection(("127.0.0.1", PORT), 5) as s:
            s.sendall(b"GET / HTTP/1.0\r\n\r\n" + bytes(100))
            s.settimeout(10)
            with contextlib.suppress(ConnectionResetError):
                while s.recv(1000):
                    pass
    finally:
        n3.stop()


def test_without_a_key_it_stays_on_loopback(base: Path) -> None:
    n = Node(base, "n1", f"port = {PORT}\n", key=False).start()
    try:
        (me,) = n.ask("status")["nodes"]
        assert me["addr"] == "127.0.0.1"
        assert "loopback" in n.log.read_text()
        assert not next(c for c in n.ask("doctor")["checks"] if c["name"] == "key")["ok"]
    finally:
        n.stop()


@pytest.fixture
def wire_between() -> Iterator[tuple[int, int]]:
    """Two network namespaces with a cable, each as the pid of a process in it."""

    def ip(pid: int, *args: str) -> None:
        subprocess.run(["nsenter", f"--net=/proc/{pid}/ns/net", "ip", *args], check=True, timeout=10)

    inside = [subprocess.Popen(["unshare", "--net", "sleep", "1000"]) for _ in range(2)]
    try:
        for p in inside:
            until(lambda p=p: os.stat(f"/proc/{p.pid}/ns/net").st_ino != os.stat("/proc/self/ns/net").st_ino)  # type: ignore[misc]
        a, b = (p.pid for p in inside)
        ip(a, "link", "add", "c1", "type", "veth", "peer", "name", "c2", "netns", str(b))
        for i, pid in ((1, a), (2, b)):
            ip(pid, "address", "add", f"10.99.77.{i}/24", "dev", f"c{i}")
            ip(pid, "link", "set", f"c{i}", "up")
            ip(pid, "link", "set", "lo", "up")
        yield a, b
    finally:
        for p in inside:
            p.kill()
            p.wait()


def test_multicast_alone_makes_a_pool(base: Path, wire_between: tuple[int, int]) -> None:
    """No seeds, no addresses: the interface given on the command line is enough."""
    n1, n2 = (Node(base, f"n{i}", "", netns=ns) for i, ns in enumerate(wire_between, 1))
    try:
        n1.start("-i", "c1")
        n2.start("-i", "c2")
        until(lambda: n1.states() == n2.states() == {"n1": "alive", "n2": "alive"})
        assert {n["id"] for n in n1.ask("status")["nodes"]} == {77 * 256 + 1, 77 * 256 + 2}
        until(lambda: next(c for c in n2.ask("doctor")["checks"] if c["name"] == "multicast")["ok"])
    finally:
        for n in (n1, n2):
            if n.process:
                n.stop()


def test_an_interface_that_is_not_there(base: Path) -> None:
    n = Node(base, "n1", "").start("-i", "nosuch0", wait=False)
    assert n.process and n.process.wait(15) == 4
    assert "nosuch0" in n.log.read_text()


def test_load_is_exact(nodes: tuple[Node, Node]) -> None:
    """Three busy threads, one of them in a process with two, are three more runnable threads."""
    n1, _ = nodes
    from omdiscd.procscan import ProcessTable

    busy = "f=lambda:[hashlib.pbkdf2_hmac('sha256',b'x',b'y',9**9) for _ in range(9)]"
    code = f"import threading,hashlib\n{busy}\nthreading.Thread(target=f,daemon=True).start()\nprint(flush=True)\nf()"
    commands = [sys.executable, "-c", code], ["sh", "-c", "echo; while :; do :; done"]
    procs = [subprocess.Popen(c, stdout=subprocess.PIPE) for c in commands]
    try:
        for p in procs:
            assert p.stdout is not None and p.stdout.readline()
        table = ProcessTable()
        table.look(time.monotonic())
        time.sleep(1.0)
        table.look(time.monotonic())
        assert [round(table.processes[p.pid].runnable) for p in procs] == [2, 1]
        until(lambda: n1.ask("status", node="n1")["nodes"][0]["load"] > 0)
    finally:
        for p in procs:
            with p:
                p.kill()


# -- jobs that start elsewhere -----------------------------------------------------------------------------------------------------------


def launch(on: Node, /, program: str, **flags: Any) -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
    """As mosrun does: register, and exec when told."""
    read, write = os.pipe()
    p = subprocess.Popen(
        ["bash", "-c", f"read go <&{read}; exec {program}"], pass_fds=[read], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(read)
    try:
        answer = on.ask("job", pid=p.pid, flags=flags)
    except BaseException:
        p.kill()
        p.wait()
        raise
    else:
        os.write(write, b"go\n")
    finally:
        os.close(write)
    return p, answer


def test_a_job_that_cannot_start_there_starts_here(nodes: tuple[Node, Node]) -> None:
    """It is held at its exec; the other node is full by then; it is let go, untraced, unfrozen, in its old cgroup."""
    n1, n2 = nodes
    n2.stop()
    n2.config.write_text(n2.config.read_text() + "max_guests = 0\n")
    n2.start()
    until(lambda: n1.states()["n2"] == "alive")
    p, answer = launch(n1, "sh -c 'exit 7'", node="n2")
    assert answer["hold"] is True and answer["to"] == "n2"
    assert p.wait(60) == 7
    until(lambda: [e for e in n1.ask("events")["events"] if e["kind"] == "job"])
    (event,) = [e for e in n1.ask("events")["events"] if e["kind"] == "job"]
    assert event["outcome"] == "starts at home" and "max_guests" in event["reason"]


def test_a_job_is_let_go_when_the_daemon_dies(nodes: tuple[Node, Node]) -> None:
    n1, _ = nodes
    read, write = os.pipe()
    with subprocess.Popen(
        ["bash", "-c", f"read go <&{read}; exec sh -c 'exit 7'"], pass_fds=[read], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    ) as p:
        os.close(read)
        assert n1.ask("job", pid=p.pid, flags={"node": "n2"})["hold"] is True
        n1.stop(signal.SIGKILL)
        os.write(write, b"go\n")
        os.close(write)
        assert p.wait(30) == 7


def test_here_is_no_hold(nodes: tuple[Node, Node]) -> None:
    n1, _ = nodes
    for flags in ({"node": "n1"}, {"home": True, "best": True}, {}):
        p, answer = launch(n1, "true", **flags)
        assert answer["hold"] is False and p.wait(10) == 0


def test_an_unknown_node_is_told_before_anything_is_held(nodes: tuple[Node, Node]) -> None:
    with pytest.raises(MigError) as e:
        launch(nodes[0], "true", node="n9")
    assert e.value.code == "bad-input"


# -- guests --------------------------------------------------------------------------------------------------------------------------------

HELPER = Path(__file__).with_name("daemon_helper.py")


@pytest.fixture
def helpers() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start stand-ins for agents and keepers."""
    started: list[subprocess.Popen[bytes]] = []

    def start(node: Node, name: str, **row: Any) -> subprocess.Popen[bytes]:
        path = node.run / "mig" / name
        argv = [sys.executable, str(HELPER), str(path), json.dumps({"state": "running", "comm": "sleep", "uid": 0, **row})]
        p = subprocess.Popen(argv, stdout=subprocess.PIPE)
        started.append(p)
        until(path.exists)
        return p

    yield start
    for p in started:
        p.kill()
        p.communicate()


def heard(helper: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert helper.stdout
    return dict(json.loads(helper.stdout.readline()))


Start = Callable[..., subprocess.Popen[bytes]]


def test_orders_reach_the_agent_from_home_and_from_the_host(
    nodes: tuple[Node, Node], sleeper: subprocess.Popen[bytes], helpers: Start
) -> None:
    """The guest's home is n1, it runs on n2; the sleeper plays the deputy, and a second one the guest."""
    n1, n2 = nodes
    with subprocess.Popen(["sleep", "1000"]) as guest:
        agent = helpers(n1, f"agents/{sleeper.pid}.sock", role="agent", pid=sleeper.pid, home="n1", where="n2")
        helpers(n2, f"keepers/1-{sleeper.pid}-1.sock", role="keeper", pid=sleeper.pid, home="n1", where="n2", host_pid=guest.pid)
        until(lambda: n1.ask("guests")["guests"] and n2.ask("guests")["guests"])
        assert n1.ask("migrate", pid=sleeper.pid, to="home")["result"] == {"pid": sleeper.pid, "to": "n1", "mode": "home"}
        m = heard(agent)
        assert (m["op"], m["mode"], m["to"]["name"], m["reason"]) == ("move", "home", "n1", "user 0 asked")
        assert "already" in refused("bad-input", n1, pid=sleeper.pid, to="n2")
        assert "already" in refused("bad-input", n2, pid=guest.pid, to="n2")
        assert n2.ask("migrate", pid=guest.pid, to="home", timeout=7)["result"]["mode"] == "home"
        assert heard(agent)["timeout"] == 7
        n2.ask("lock", pid=guest.pid)
        assert (heard(agent) | {"id": 0}) == {"op": "lock", "on": True, "id": 0}
        guest.kill()


def test_guests_are_found_again(nodes: tuple[Node, Node], sleeper: subprocess.Popen[bytes], helpers: Start) -> None:
    n1, _ = nodes
    agent = helpers(n1, f"agents/{sleeper.pid}.sock", role="agent", pid=sleeper.pid, home="n1", where="n2", nmigs=3)
    until(lambda: n1.ask("guests")["guests"])
    n1.stop(signal.SIGKILL)
    n1.start()
    until(lambda: n1.ask("guests")["guests"])
    assert n1.ask("guests")["guests"][0]["nmigs"] == 3 and agent.poll() is None


def test_agents_hear_of_a_dead_host(nodes: tuple[Node, Node], sleeper: subprocess.Popen[bytes], helpers: Start) -> None:
    n1, n2 = nodes
    agent = helpers(n1, f"agents/{sleeper.pid}.sock", role="agent", pid=sleeper.pid, home="n1", where="n2")
    until(lambda: n1.ask("guests")["guests"])
    boot = n1.ask("whois", node="n2")["node"]["boot"]
    n2.stop(signal.SIGKILL)
    assert heard(agent) == {"op": "node", "name": "n2", "state": "dead", "boot": boot}


def test_an_agent_that_dies_in_a_move_leaves_a_clear_word(
    nodes: tuple[Node, Node], sleeper: subprocess.Popen[bytes], helpers: Start
) -> None:
    n1, _ = nodes
    agent = helpers(n1, f"agents/{sleeper.pid}.sock", role="agent", pid=sleeper.pid, home="n1", where="n2")
    until(lambda: n1.ask("guests")["guests"])
    agent.send_signal(signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        words = pool.submit(refused, "unknown", n1, pid=sleeper.pid, to="home")
        time.sleep(0.2)
        agent.kill()
        assert "died" in words.result(30)
