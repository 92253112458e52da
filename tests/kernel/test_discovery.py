"""Real daemons on real wires between network namespaces: IPv6, several cards, an address that changes, a cloned machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from omtools.client import Client

OMDISCD = str(Path(sys.prefix) / "bin" / "omdiscd")
FAST = "gossip_s = 0.2\nhello_s = 0.4\nsuspect_s = 1.0\ndead_s = 2.0\nspeed = 1.0\n"


def until(true: Callable[[], Any]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end, "it did not become true in 30 s"
        time.sleep(0.05)


class Machine:
    """A network namespace with an omdiscd and directories of its own, where the host name means 127.0.1.1, as Debian has it."""

    def __init__(self, base: Path, name: str) -> None:
        self.run = base / name
        self.run.mkdir()
        self.name, self.log = name, self.run / "log.txt"
        self.hosts = self.run / "hosts"
        self.hosts.write_text(f"127.0.0.1 localhost\n127.0.1.1 {name}\n")
        own = f"hostname {name} && mount --bind {self.hosts} /etc/hosts && ip link set lo up && echo made && exec sleep 1000"
        command = ["unshare", "--net", "--mount", "--uts", "sh", "-c", own]
        self.holder = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        assert self.holder.stdout is not None and self.holder.stdout.readline() == b"made\n"
        self.enter = ["nsenter", f"--net=/proc/{self.holder.pid}/ns/net", f"--mount=/proc/{self.holder.pid}/ns/mnt"]
        self.enter.append(f"--uts=/proc/{self.holder.pid}/ns/uts")
        self.daemon: subprocess.Popen[bytes] | None = None

    def ip(self, *args: str) -> None:
        subprocess.run([*self.enter, "ip", *args], check=True, timeout=20)

    def start(self, *args: str, config: str = "") -> None:
        (self.run / "omdiscd.toml").write_text(f'name = "{self.name}"\n{FAST}{config}')
        env = {**os.environ, "MIG_RUN": str(self.run / "mig"), "MIG_KEY": str(self.run.parent / "key")}
        command = [*self.enter, OMDISCD, "-n", "-c", str(self.run / "omdiscd.toml"), *args]
        with open(self.log, "ab") as out:
            self.daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env)

    def rows(self) -> dict[str, dict[str, Any]]:
        try:
            with Client(self.run / "mig" / "control.sock") as c:
                return {n["name"]: n for n in c.call("status")["nodes"]}
        except Exception:  # not up yet, or starting anew
            return {}

    def sees(self, **states: str) -> bool:
        return {n: r["state"] for n, r in self.rows().items()} == states

    def stop(self) -> None:
        if self.daemon:
            self.daemon.terminate()
            self.daemon.wait(20)
            self.daemon = None

    def end(self) -> None:
        self.stop()
        with self.holder:
            self.holder.kill()


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Callable[[str], Machine]]:
    (tmp_path / "key").write_bytes(os.urandom(32))
    (tmp_path / "key").chmod(0o600)
    made: list[Machine] = []

    def make(name: str) -> Machine:
        made.append(Machine(tmp_path, name))
        return made[-1]

    try:
        yield make
    finally:
        for m in made:
            m.end()


def cable(a: Machine, card_a: str, b: Machine, card_b: str) -> None:
    a.ip("link", "add", card_a, "type", "veth", "peer", "name", card_b, "netns", str(b.holder.pid))
    a.ip("link", "set", card_a, "up")
    b.ip("link", "set", card_b, "up")


def test_a_pool_that_has_only_ipv6(machines: Callable[[str], Machine]) -> None:
    """No IPv4 but loopback's, no default route."""
    a, b = machines("a"), machines("b")
    cable(a, "e0", b, "e0")
    for i, m in enumerate((a, b), 1):
        m.ip("address", "add", f"fd00:77::{i}/64", "dev", "e0", "nodad")
        m.start()
    until(lambda: a.sees(a="alive", b="alive") and b.sees(a="alive", b="alive"))
    assert a.rows()["b"]["addr"] == "fd00:77::2"


def test_one_with_two_cards_is_seen_on_both(machines: Callable[[str], Machine]) -> None:
    """``-i`` names both; the two others have no wire to each other and are routed by the one in the middle."""
    a, b, c = machines("a"), machines("b"), machines("c")
    cable(a, "e0", b, "e0")
    cable(a, "e1", c, "e0")
    subprocess.run([*a.enter, "sysctl", "-qw", "net.ipv4.ip_forward=1"], check=True)
    a.ip("address", "add", "10.99.1.1/24", "dev", "e0")
    a.ip("address", "add", "10.99.2.1/24", "dev", "e1")
    b.ip("address", "add", "10.99.1.2/24", "dev", "e0")
    c.ip("address", "add", "10.99.2.3/24", "dev", "e0")
    b.ip("route", "add", "10.99.2.0/24", "via", "10.99.1.1")
    c.ip("route", "add", "10.99.1.0/24", "via", "10.99.2.1")
    a.start("-i", "e0,e1")
    b.start()
    c.start()
    until(lambda: all(m.sees(a="alive", b="alive", c="alive") for m in (a, b, c)))


def test_a_changed_address_keeps_the_id_and_a_clone_gets_its_own(machines: Callable[[str], Machine]) -> None:
    a, b = machines("a"), machines("b")
    cable(a, "e0", b, "e0")
    a.ip("address", "add", "10.99.3.1/24", "dev", "e0")
    b.ip("address", "add", "10.99.3.2/24", "dev", "e0")
    a.start()
    b.start("-i", "e0")
    until(lambda: a.sees(a="alive", b="alive") and b.sees(a="alive", b="alive"))
    before = a.rows()["b"]
    assert before["kernel"] == os.uname().release and before["cpu"].startswith(os.uname().machine)
    assert b.daemon
    pid = b.daemon.pid
    b.ip("address", "flush", "dev", "e0", "scope", "global")
    b.ip("address", "add", "10.99.3.9/24", "dev", "e0")
    until(lambda: a.rows().get("b", {}).get("addr") == "10.99.3.9" and a.sees(a="alive", b="alive"))
    after = a.rows()["b"]
    assert (after["id"], after["boot"]) == (before["id"], before["boot"]) and b.daemon.poll() is None and b.daemon.pid == pid
    assert "its address was 10.99.3.2 and is 10.99.3.9 now" in b.log.read_text()

    # a clone of a, with its id and its machine id, at another address
    for m in (a, b):
        m.stop()
    kept = json.loads((a.run / "mig/state/node.json").read_text())
    (b.run / "mig/state/node.json").write_text(json.dumps(kept))
    b.start("-i", "e0")
    until(b.rows)
    a.start()
    until(lambda: a.rows().get("b", {}).get("id") == 3 * 256 + 9)
    assert a.rows()["a"]["id"] == kept["id"] and "has its id" in b.log.read_text()


def test_an_address_that_goes_for_good_and_a_card_that_is_not_spoken_on(machines: Callable[[str], Machine]) -> None:
    """Both are in the log with what to do; the address that comes back heals by itself."""
    a, b = machines("a"), machines("b")
    cable(a, "e0", b, "e0")
    cable(a, "e1", b, "e1")
    a.ip("address", "add", "10.99.4.1/24", "dev", "e0")
    a.ip("route", "add", "default", "via", "10.99.4.2")
    a.ip("address", "add", "10.99.5.1/24", "dev", "e1")
    b.ip("address", "add", "10.99.4.2/24", "dev", "e0")
    a.start(config='addr = "10.99.4.1"\n')
    b.start()
    until(lambda: a.sees(a="alive", b="alive") and b.sees(a="alive", b="alive"))
    assert subprocess.run([*a.enter, "getent", "hosts", "a"], capture_output=True, text=True, check=True).stdout.startswith("127.0.1.1")
    assert "hellos go out on e0 only; this machine also has e1 (omdiscd -i e0,e1)" in a.log.read_text()
    a.ip("address", "del", "10.99.4.1/24", "dev", "e0")
    until(lambda: "the address 10.99.4.1 is on no interface of this machine any more" in a.log.read_text())
    until(lambda: b.sees(a="dead", b="alive"))
    a.ip("address", "add", "10.99.4.1/24", "dev", "e0")
    until(lambda: a.sees(a="alive", b="alive") and b.sees(a="alive", b="alive"))
