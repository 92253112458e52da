"""A node gets another address (DHCP, another network) while a guest is away: neither its host's nor its home's is its end."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from tests.cluster.conftest import LabUnderTest
from tests.cluster.helpers import Servant, migrate, servant, where
from tests.faults.conftest import Faults

OwnLab = Callable[..., LabUnderTest]


def readdress(lab: LabUnderTest, node: str, last: int) -> str:
    """The node's address ends with ``last`` from now on; the old one is gone."""
    old = address(lab, node)
    new = f"{old.rpartition('.')[0]}.{last}"
    lab.run(node, f"ip addr flush dev eth0; ip addr add {new}/24 brd + dev eth0; ip route add 224.0.0.0/4 dev eth0", check=True)
    return new


def is_seen(lab: LabUnderTest, node: str, addr: str) -> None:
    """The pool knows where the node is now."""
    lab.wait_for(lambda: seen(lab, node) == addr, 40, f"the pool sees {node} at {addr}")


def let_addresses_change(lab: LabUnderTest) -> None:
    """As on machines whose address is not in their configuration."""
    for node in ("n1", "n2"):
        lab.run(node, "sed -i /^addr/d /etc/mig/omdiscd.toml", check=True)
        lab.restart_daemon(node)


def address(lab: LabUnderTest, node: str) -> str:
    links = json.loads(lab.run(node, ["ip", "-j", "-4", "addr", "show", "dev", "eth0"], check=True).stdout)
    return str(links[0]["addr_info"][0]["local"])


def seen(lab: LabUnderTest, node: str) -> str:
    """Its address to n3, "" when it does not live for n3."""
    nodes = json.loads(lab.run("n3", ["mosctl", "status", "--json"], check=True).stdout)
    return next((str(n["addr"]) for n in nodes if n["name"] == node and n["state"] == "alive"), "")


def is_whole(guest: Servant, word: str) -> None:
    """Its pipes, its files and its locks lead home."""
    guest.do(f"f.write('{word}\\n')", timeout=60)
    assert guest.ask("open('/tmp/readdressed').read()").split()[-1] == word
    assert guest.ask("subprocess.call(['flock', '-n', '/tmp/readdressed', 'true'])") == 1


def test_a_guest_goes_on_when_its_host_and_its_home_get_another_address(own_lab: OwnLab) -> None:
    lab = own_lab()
    let_addresses_change(lab)
    with servant(lab) as guest:
        guest.do("import fcntl, subprocess; f = open('/tmp/readdressed', 'w', buffering=1); fcntl.flock(f, fcntl.LOCK_EX)")
        guest.move("n2")
        is_whole(guest, "away")
        for i, node in enumerate(("n2", "n1", "n2")):
            is_seen(lab, node, readdress(lab, node, 77 + i))
            is_whole(guest, f"{node}-moved")
            assert where(lab, guest.pid) == "n2"
        guest.move("n3")
        is_whole(guest, "onward")
        guest.move("home")
        is_whole(guest, "home")
        assert guest.end() == 0
    text = lab.path("n1", "/tmp/readdressed").read_text()
    assert text.split() == ["away", "n2-moved", "n1-moved", "n2-moved", "onward", "home"]


def test_memory_that_is_on_its_way_arrives_from_another_address(own_lab: OwnLab) -> None:
    """From home's and from a host's: the address changes when half of it has come."""
    lab = own_lab("--link", "100mbit")
    faults = Faults(lab)
    let_addresses_change(lab)
    with servant(lab) as guest:
        guest.do("import hashlib, random; data = random.randbytes(48 << 20); digest = hashlib.sha1(data).digest()", timeout=60)
        for i, (source, to) in enumerate((("n1", "n2"), ("n2", "n3"))):
            faults.set(source, "mid_postcopy", "hang")
            migrate(lab, guest.pid, to, mode="post-copy")
            faults.wait(source, "mid_postcopy")
            guest.begin("hashlib.sha1(data).digest() == digest")
            faults.clear(source, "mid_postcopy")
            new = readdress(lab, source, 80 + i)
            time.sleep(1)
            assert not guest.answered()  # it waits for memory
            assert guest.answer(timeout=60)
            is_seen(lab, source, new)
        assert guest.end() == 0
