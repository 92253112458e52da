"""omdiscd as a service, and what strangers can do to it: real daemons, real sockets."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from nacl.secret import SecretBox
from omdiscd import service
from omdiscd.seal import Seal

from mig.config import Config
from mig.config_file import commented
from mig.kernel import cgroup
from mig.trust import keys
from tests.kernel.test_daemon import OMDISCD, Node, until
from tests.unit.test_hostile_input import mutated

PORT = 17241

MOSCTL = str(Path(sys.prefix) / "bin" / "mosctl")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("s")
    (directory / "key").write_bytes(os.urandom(32))
    (directory / "key").chmod(0o600)
    return directory


@pytest.fixture(scope="module")
def nodes(base: Path) -> Iterator[tuple[Node, Node]]:
    """Two that live for all tests of this file, and stand all of them."""
    config = f'port = {PORT}\nmulticast = ""\nseeds = ["127.0.0.1", "127.0.0.2"]\n'
    pair = tuple(Node(base, f"n{i}", f'addr = "127.0.0.{i}"\n{config}') for i in (1, 2))
    try:
        for n in pair:
            # each has a key file of its own, as on two machines
            n.key = base / f"{n.run.name}.key"
            n.key.write_bytes((base / "key").read_bytes())
            n.key.chmod(0o600)
            n.start()
        until(lambda: pair[0].states() == pair[1].states() == {"n1": "alive", "n2": "alive"})
        yield pair[0], pair[1]
    finally:
        for n in pair:
            if n.process:
                n.stop()


@pytest.fixture
def n1(nodes: tuple[Node, Node]) -> Node:
    return nodes[0]


def relay_of(n: Node) -> psutil.Process:
    assert n.process
    (relay,) = [p for p in psutil.Process(n.process.pid).children() if p.name() == "mig-relay"]
    return relay


def mosctl(n: Node, *args: str, stdin: str = "") -> str:
    env = {**os.environ, "MIG_RUN": str(n.run / "mig"), "MIG_KEY": str(n.key)}
    r = subprocess.run([MOSCTL, *args], env=env, input=stdin, capture_output=True, text=True, timeout=20)
    assert r.returncode == 0, r.stderr
    return r.stdout


# -- the service ------------------------------------------------------------------------------------------------------------------


def test_the_printed_configuration_is_the_default_and_every_knob_is_explained() -> None:
    text = subprocess.run([OMDISCD, "--print-config"], capture_output=True, text=True, timeout=20, check=True).stdout
    assert text == commented() and tomllib.loads(text) == {}
    told = re.sub(r"(?m)^#(\w+ = )", r"\1", text)
    assert Config.from_map(tomllib.loads(told)) == Config()
    assert len(re.findall(r"(?m)^\w+ = ", told)) == len(Config().describe().splitlines())


def test_the_unit_is_understood_by_systemd(tmp_path: Path) -> None:
    unit = tmp_path / "omdiscd.service"
    unit.write_text(subprocess.run([OMDISCD, "--print-unit"], capture_output=True, text=True, timeout=20, check=True).stdout)
    assert f"ExecStart={OMDISCD} -n\n" in unit.read_text()
    r = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, timeout=60)
    assert r.returncode == 0 and "omdiscd.service" not in r.stderr, r.stderr


def test_signs_of_life_go_to_systemd_in_half_the_time_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert service.watchdog_interval() == 15
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert service.watchdog_interval() == 0


def test_hangup_reads_the_configuration_again(n1: Node) -> None:
    assert n1.process
    n1.config.write_text(n1.config.read_text() + "max_guests = 3\n")
    n1.process.send_signal(signal.SIGHUP)
    until(lambda: "max_guests = 3 (was 64)" in n1.log.read_text())
    n1.config.write_text(n1.config.read_text().replace("max_guests = 3", "max_guests = -3"))
    n1.process.send_signal(signal.SIGHUP)
    until(lambda: "not reloaded, everything stays as it was" in n1.log.read_text())
    n1.config.write_text(n1.config.read_text().replace("max_guests = -3", "max_guests = 3\nfanout = 3"))
    assert mosctl(n1, "reload").strip() == f"fanout = 3: when omdiscd is started again (now {Config().fanout})"


def test_a_pool_changes_its_key_without_a_stop(nodes: tuple[Node, Node], base: Path) -> None:
    n1, n2 = nodes
    old = (base / "key").read_bytes()
    for action in ("new", "use", "drop"):
        assert mosctl(n1, "key", action)
        time.sleep(0.5)  # in between one node knows more than the other
        assert n1.states()["n2"] == n2.states()["n1"] == "alive"
        mosctl(n2, "key", "install", stdin=mosctl(n1, "key", "show"))
    (fresh,) = keys.load(n1.key)
    assert keys.load(n2.key) == [fresh] != [old]
    time.sleep(1.5)  # longer than dead_s
    assert n1.states() == n2.states() == {"n1": "alive", "n2": "alive"}
    # the old key is worth nothing now
    before = n1.log.read_text().count("not sealed with our key")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind(("127.0.0.9", 0))
        s.sendto(Seal(old, 9, 1).seal({"t": "hello", "n": []}), ("127.0.0.1", PORT))
        until(lambda: n1.log.read_text().count("127.0.0.9: its datagrams are ignored: not sealed with our key") == 1)
    assert n1.log.read_text().count("not sealed with our key") == before + 1


def test_helpers_leave_the_unit_of_systemd() -> None:
    """What systemd kills with the unit is what is in the unit's cgroup."""
    code = "import os; from mig.kernel.cgroup import leave_unit, of; leave_unit(); print(of(os.getpid()), of(os.getppid()))"
    for inside, moves in ((True, True), (False, False)):
        env = {k: v for k, v in os.environ.items() if k != "INVOCATION_ID"} | ({"INVOCATION_ID": "1"} if inside else {})
        ours, parents = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout.split()
        assert (ours != parents) is moves and (Path(ours).name == "mig-helpers") is moves
    (cgroup.root() / "mig-helpers").rmdir()


# -- strangers --------------------------------------------------------------------------------------------------------------------


def test_a_node_with_another_certificate_is_turned_away(n1: Node, base: Path) -> None:
    """It speaks TLS and has a certificate, which no sealed datagram has named."""
    pem = base / "stranger.pem"
    subprocess.run([Path(sys.prefix) / "libexec/mig/relay", "--make", pem], check=True)
    r = subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{PORT}", "-cert", pem, "-key", pem, "-quiet", "-tls1_3"],
        stdin=subprocess.DEVNULL, capture_output=True, timeout=20,
    )  # fmt: skip
    assert not r.stdout
    until(lambda: "is not known in the pool" in n1.log.read_text())


@pytest.mark.parametrize("talk", ["nothing", "half", "http", "old-tls", "no-certificate"])
def test_strangers_on_the_bulk_port_get_nothing_and_cost_nothing(n1: Node, talk: str) -> None:
    assert n1.process
    daemon, relay = psutil.Process(n1.process.pid), relay_of(n1)
    before = daemon.num_fds(), relay.num_fds()
    if talk in ("old-tls", "no-certificate"):
        version = "-tls1_2" if talk == "old-tls" else "-tls1_3"
        argv = ["openssl", "s_client", "-connect", f"127.0.0.1:{PORT}", "-quiet", version]
        r = subprocess.run(argv, input=b"\x81\xa2op\xa4info", capture_output=True, timeout=20)
        assert not r.stdout
    else:
        for _ in range(100):
            with socket.create_connection(("127.0.0.1", PORT), 5) as s:
                s.sendall({"nothing": b"", "half": b"\x16\x03\x01\x02\x00\x01", "http": b"GET / HTTP/1.0\r\n\r\n"}[talk])
                s.shutdown(socket.SHUT_WR)
                s.settimeout(5)
                while talk == "http":
                    try:
                        if not s.recv(1000):
                            break
                    except ConnectionResetError:
                        break
    until(lambda: "127.0.0.1: its connections are turned away: no encrypted connection" in n1.log.read_text())
    until(lambda: (daemon.num_fds(), relay.num_fds()) == before)
    assert n1.log.read_text().count("turned away") < 10  # a line a minute for each kind, not one for each connection
    assert n1.states()["n2"] == "alive"


def test_a_crowd_that_says_nothing_is_bounded(n1: Node) -> None:
    """More silent connections than may greet at a time: the rest is dropped, and a node of the pool gets in again afterwards."""
    crowd = [socket.create_connection(("127.0.0.1", PORT), 5) for _ in range(150)]
    try:
        until(lambda: "have not said who they are" in n1.log.read_text())
        assert n1.states()["n2"] == "alive"
    finally:
        for s in crowd:
            s.close()


def test_repeated_and_reflected_datagrams_change_nothing(nodes: tuple[Node, Node], base: Path) -> None:
    n1, _ = nodes
    key = keys.load(n1.key)[0]
    taken = Seal(key, 9, 1).seal({"x": 1})
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind(("127.0.0.9", 0))
        for _ in range(50):
            s.sendto(taken, ("127.0.0.1", PORT))
        until(lambda: "its datagrams are ignored: seen before" in n1.log.read_text())
        me = n1.ask("status")["nodes"][0]
        s.sendto(Seal(key, me["id"], me["incarnation"]).seal({"x": 1}), ("127.0.0.1", PORT))
        until(lambda: "sends our own datagrams back to us" in n1.log.read_text())
        s.sendto(b"m2" + SecretBox(key).encrypt(b"\xc1"), ("127.0.0.1", PORT))
        until(lambda: "no map in it" in n1.log.read_text())
    assert n1.log.read_text().count("seen before") == 1
    assert n1.states() == {"n1": "alive", "n2": "alive"}


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_million_changed_datagrams_cost_a_daemon_nothing_that_stays(nodes: tuple[Node, Node]) -> None:
    n1, n2 = nodes
    assert n1.process
    daemon, chance = psutil.Process(n1.process.pid), random.Random(3)
    models = [Seal(bytes(32), 2, 1).seal({"t": "vector", "n": [list(range(12))] * k}) for k in range(20)]
    before, lines = 0, n1.log.read_text().count("\n")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind(("127.0.0.9", 0))
        for i in range(1_000_000):
            s.sendto(mutated(chance, chance.choice(models)), ("127.0.0.1", PORT))
            if i == 100_000:
                before = daemon.memory_info().rss
            if i % 100_000 == 0:
                assert n1.states() == n2.states() == {"n1": "alive", "n2": "alive"}
    assert daemon.memory_info().rss - before < 4 << 20
    heard = next(c["text"] for c in n1.ask("doctor")["checks"] if c["name"] == "datagrams")
    print(heard)
    assert int(heard.split()[0]) > 100_000  # what the socket's buffer did not hold is not ours to count
    assert n1.log.read_text().count("\n") - lines < 50


@pytest.mark.parametrize("talk", ["nothing", "half", "huge"])
def test_a_client_of_the_control_socket_that_misbehaves(n1: Node, talk: str) -> None:
    assert n1.process
    daemon = psutil.Process(n1.process.pid)
    before = daemon.memory_info().rss
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16 + 1 + 31)
    clients = []
    for _ in range(20):
        s = socket.socket(socket.AF_UNIX)
        s.connect(str(n1.run / "mig" / "control.sock"))
        clients.append(s)
        s.settimeout(2)
        if talk == "nothing":
            continue
        ready = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER\x08Identity\x00\x00\x00\x00"
        s.sendall(greeting + b"\x04" + bytes([len(ready)]) + ready)
        if talk == "half":
            s.sendall(b"\x02" + (100).to_bytes(8, "big") + b"half")
        else:
            try:
                s.sendall(b"\x02" + (1 << 30).to_bytes(8, "big"))
                for _ in range(1024 if len(clients) == 1 else 1):
                    s.sendall(bytes(1 << 20))
            except (BrokenPipeError, ConnectionResetError, TimeoutError):
                pass  # it does not listen to so much
    assert n1.states()["n2"] == "alive"
    assert daemon.memory_info().rss - before < 8 << 20
    for s in clients:
        s.close()


HALF = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48) + b"\x04\x26\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"


@pytest.mark.parametrize("said", [b"", HALF, b"GET / HTTP/1.0\r\n\r\n"])
def test_a_client_that_leaves_the_control_socket_without_a_request_is_named_once(n1: Node, said: bytes) -> None:
    code = """
import socket, sys, time
for _ in range(5):
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(sys.argv[1])
        s.sendall(bytes.fromhex(sys.argv[2]))
        time.sleep(0.2)  # so that its connection is looked at while it is there
"""
    with subprocess.Popen([sys.executable, "-c", code, n1.run / "mig" / "control.sock", said.hex()]) as client:
        assert client.wait(30) == 0
    line = f"process {client.pid} of user {os.getuid()}: it left the control socket, or was sent away, without a request"
    until(lambda: line in n1.log.read_text())
    time.sleep(0.5)
    assert n1.log.read_text().count(line) == 1
