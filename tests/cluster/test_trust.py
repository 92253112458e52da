"""Trust between nodes of a lab: nothing readable on the wire, nothing dangerous in a cell, policy by a node's own configuration."""

from __future__ import annotations

import errno
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mig.criu import images, layout
from tests.faults.conftest import Faults
from tests.kernel.criu_guest import SOCKET_OPTIONS

from .helpers import servant, where

SECRET = "/root/secret"
MARK = "the-wire-must-not-know-this"
TAP = """
import os, socket, sys, time
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)); s.settimeout(0.2)
s.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)
print("tapping", flush=True)
end, total, hits = time.monotonic() + 60, 0, 0
while time.monotonic() < end and not os.path.exists("/tmp/tapped"):
    try: d = s.recv(1 << 16)
    except TimeoutError: continue
    total += len(d); hits += sys.argv[1].encode() in d
print(total, hits, flush=True)
"""


def tapped(lab: Any, what: Any) -> tuple[int, int]:
    """Bytes that passed n2's network interfaces while ``what`` ran, and frames in which the mark could be read."""
    out: list[str] = []

    def tap() -> None:
        out.append(lab.run("n2", ["python3", "-S", "-c", TAP, MARK], timeout=80, check=True).stdout)

    t = threading.Thread(target=tap)
    t.start()
    time.sleep(0.7)
    try:
        what()
        time.sleep(0.3)
    finally:
        lab.run("n2", "touch /tmp/tapped", check=True)
        t.join()
        lab.run("n2", "rm /tmp/tapped", check=True)
    total, hits = out[0].splitlines()[-1].split()
    return int(total), int(hits)


def test_nothing_that_moves_can_be_read_on_the_wire(lab: Any) -> None:
    """Memory, arguments, file contents, what is written to a pipe: moved and used while n2's interface is tapped."""
    lab.run("n1", f"mkdir -p /tmp/{MARK} && echo {MARK} > /tmp/{MARK}/{MARK}", check=True)
    # the tap works: the same words in the clear are seen
    listen = "import socket; s = socket.socket(2, 2); s.bind(('', 9999)); s.recv(99)"
    receiver = lab.spawn("n2", ["python3", "-c", listen])
    addr = lab.lab.node("n2").addr
    say = f"import socket; s = socket.socket(2, 2); s.sendto({MARK.encode()!r}, ({addr!r}, 9999))"
    assert tapped(lab, lambda: lab.run("n1", ["python3", "-c", say], check=True))[1] > 0
    with servant(lab, 1000) as s:
        s.do(f"memory = [{MARK!r} * 1000 for _ in range(50)]")

        def work() -> None:
            s.move("n2")
            assert s.ask(f"open('/tmp/{MARK}/{MARK}').read().strip()") == MARK
            assert s.ask(f"{MARK!r} * 3") == MARK * 3
            s.move("home")
            s.move("n2")

        total, hits = tapped(lab, work)
        assert total > 4 << 20 and hits == 0, (total, hits)
    if lab.alive("n2", receiver):
        lab.signal("n2", receiver, 9)


def test_a_cell_does_not_show_what_root_could_do_harm_with(lab: Any) -> None:
    """Even to a guest that is root: the host's kernel is not changed, and its memory not read, through /proc."""
    with servant(lab) as s:
        s.move("n2")
        for name in ("kcore", "kmsg", "sysrq-trigger"):
            assert s.ask(f"not os.path.exists('/proc/{name}') or os.stat('/proc/{name}').st_rdev == os.makedev(1, 3)"), name
        s.do("def tried(path):\n    try: open(path, 'w').write('x')\n    except OSError as e: return e.errno")
        assert s.ask("tried('/proc/sys/kernel/core_pattern')") == errno.EROFS
        s.move("n3")
        assert s.ask("tried('/proc/sys/kernel/core_pattern')") == errno.EROFS


def test_a_nodes_own_policy_decides_and_can_be_changed_while_it_runs(lab: Any) -> None:
    config = "/etc/mig/omdiscd.toml"
    lab.run("n2", f"cp {config} /tmp/config.kept", check=True)
    try:
        for line, told in (
            ('allow_from = ["n3", "10.255.255.0/24"]', "takes no process of n1"),
            ("max_memory = 1048576", "max_memory"),
            ("max_guests = 0", "max_guests"),
        ):
            key = line.split(" =")[0]
            change = f"sed '/^{key} /d' /tmp/config.kept > {config}; echo '{line}' >> {config}; mosctl reload"
            assert key in lab.run("n2", change, check=True).stdout
            with servant(lab, 1000) as s:
                r = lab.run("n1", ["migrate", str(s.pid), "n2"])
                assert r.returncode == 3 and told in r.stderr, (line, r.stderr)
                assert where(lab, s.pid) in ("", "n1")
    finally:
        lab.run("n2", f"cp /tmp/config.kept {config}; mosctl reload", check=True)
    with servant(lab, 1000) as s:
        s.move("n2")


@pytest.mark.parametrize("how", ["another file", "more access", "a socket", "what it holds"])
def test_a_host_cannot_have_home_s_root_open_files_for_its_guest(lab: Any, how: str) -> None:
    """Images that come back name a file that the guest's user may not open; one that it was given open comes back as it went."""
    lab.run(
        "n1",
        f"echo secret > {SECRET}; chmod 600 {SECRET}; install -d -m 777 /var/tmp/g; cp /etc/hostname /var/tmp/g/f; chmod 666 /var/tmp/g/f",
    )
    with servant(lab, 1000) as s:
        s.do("f = open('/var/tmp/g/f')")
        if how == "more access":
            lab.run("n1", "chmod 644 /var/tmp/g/f", check=True)
        if how == "what it holds":
            lab.run("n1", "chmod 600 /var/tmp/g/f", check=True)
        s.move("n2")
        if how == "what it holds":
            s.move("home")
            assert s.ask("f.read()") == lab.path("n1", "/etc/hostname").read_text()
            return

        def doctor(e: Any) -> None:
            if e.HasField("reg") and e.reg.name == "/var/tmp/g/f":
                if how == "another file":
                    e.reg.name = SECRET
                elif how == "more access":
                    e.reg.flags = os.O_RDWR
                else:
                    e.type = layout.image("fdinfo").fd_types.Value("UNIXSK")
                    usk = {
                        "id": e.id,
                        "ino": 1,
                        "type": 1,
                        "state": 10,
                        "flags": 2,
                        "uflags": 0,
                        "backlog": 1,
                        "peer": 0,
                        "opts": SOCKET_OPTIONS,
                    }
                    e.usk.CopyFrom(layout.image("sk_unix").unix_sk_entry(**usk, fown=e.reg.fown, name=SECRET.encode()))
                    e.ClearField("reg")

        faults = Faults(lab)
        faults.set("n2", "after_dump", "hang")
        with ThreadPoolExecutor(1) as pool:
            job = pool.submit(lab.run, "n1", ["migrate", str(s.pid), "home"], timeout=60)
            faults.wait("n2", "after_dump")
            (files,) = lab.path("n2", "/run/mig/work").glob("*.source/img/files.img")
            magic, entries = images.read_entries(files, layout.image("fdinfo").file_entry)
            for e in entries:
                doctor(e)
            images._write(files, magic, entries)
            faults.clear("n2", "after_dump")
            r = job.result()
        named = "/var/tmp/g/f" if how == "more access" else SECRET
        assert r.returncode == 4 and f"{named}: a file that it may not open so" in r.stderr and "still running on n2" in r.stderr, r.stderr
        assert s.ask("f.read()") == lab.path("n1", "/etc/hostname").read_text()
        assert lab.path("n1", SECRET).read_text() == "secret\n"
        s.move("home")
