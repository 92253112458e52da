"""A host that asks home's file server for more than its guest may: a doctored client that speaks the protocol itself."""

from __future__ import annotations

import errno
import itertools
import os
import re
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mig import wire
from mig.homefs import protocol as p
from mig.homefs.guest import CHANGES, READS, RUNS, WRITES, Guest, scan
from tests.kernel.homefs_host import Home, home

__all__ = ["home"]

USER, OTHER, ROOT = 1000, 1001, 0
GUEST = Guest(USER, USER, frozenset({USER}), frozenset({USER}))


class Doctored:
    """One mount of a host that says what it likes about who asks."""

    def __init__(self, home: Home) -> None:
        self.home, self.unique = home, itertools.count(1)
        self.sock = socket.create_connection(("127.0.0.1", home.port), timeout=20)
        self.sock.sendall(p.GREETING.pack(home.token, p.REQUESTS, os.urandom(16)))
        assert wire.recv_exact(self.sock, 4) == p.ACCEPTED

    def ask(self, op: int, uid: int, node: int, body: bytes, gid: int | None = None) -> bytes:
        """The reply's body; raises ``OSError`` with the errno that came."""
        unique, gid = next(self.unique), uid if gid is None else gid
        self.sock.sendall(p.IN_HEADER.pack(p.IN_HEADER.size + len(body), op, unique, node, uid, gid, 1, 0, 0) + body)
        length, error, answered = p.OUT_HEADER.unpack(wire.recv_exact(self.sock, p.OUT_HEADER.size))
        assert answered == unique
        reply = wire.recv_exact(self.sock, length - p.OUT_HEADER.size)
        if error:
            raise OSError(-error, os.strerror(-error))
        return reply

    def lookup(self, path: str, uid: int = USER) -> int:
        """The node at a path below the test's directory, looked up from the root by ``uid``."""
        node = 1
        for name in f"{self.home.here}/{path}".strip("/").split("/"):
            node = p.U64.unpack_from(self.ask(p.LOOKUP, uid, node, name.encode() + b"\0"))[0]
        return node

    def open(self, node: int, flags: int = os.O_RDONLY, uid: int = USER, gid: int | None = None) -> int:
        return int(p.OPEN_OUT.unpack(self.ask(p.OPEN, uid, node, p.OPEN_IN.pack(flags, 0), gid))[0])

    def read(self, fh: int) -> bytes:
        return self.ask(p.READ, ROOT, 1, p.READ_IN.pack(fh, 0, 4096, 0, 0, 0, 0))


@pytest.fixture
def host(home: Home) -> Iterator[Doctored]:
    here = Path(home.here)
    for name, mode, owner in (("mine", 0o600, USER), ("theirs", 0o600, OTHER), ("secret", 0o600, ROOT), ("program", 0o711, ROOT)):
        (here / name).write_text(name)
        os.chown(here / name, owner, owner)
        (here / name).chmod(mode)
    (here / "own").mkdir()
    os.chown(here / "own", USER, USER)
    (here / "hidden" / "deep").mkdir(parents=True)
    (here / "hidden").chmod(0o700)
    for name in ("held", "beside"):
        (here / "hidden" / "deep" / name).write_text(name)  # for all to read, if only they got there
    home.ask("guest", guest=GUEST.to_map())
    d = Doctored(home)
    yield d
    d.sock.close()


def refused(error: int = errno.EACCES) -> pytest.RaisesExc[OSError]:
    return pytest.raises(OSError, match=re.escape(os.strerror(error)))


def test_the_guests_own_files_are_served_to_it_and_to_its_host(host: Doctored) -> None:
    mine = host.lookup("mine")
    for uid in (USER, ROOT):
        assert host.read(host.open(mine, os.O_RDWR, uid)) == b"mine"
    with refused():
        host.open(host.lookup("theirs"))


@pytest.mark.parametrize("uid, gid", [(OTHER, OTHER), (OTHER, USER), (USER, OTHER), (USER, ROOT), (65534, 65534)])
def test_nobody_else_gets_anything(home: Home, host: Doctored, uid: int, gid: int) -> None:
    for name in ("mine", "theirs", "secret"):
        node = host.lookup(name)
        for _ in range(3):
            with refused():
                host.open(node, os.O_RDONLY, uid, gid)
    with refused():
        host.lookup("mine", OTHER)
    logged = [line for line in home.log.read_text().splitlines() if f"as user {uid}, group {gid}, which the guest is not" in line]
    assert len(logged) == 1, "one line a minute"


def test_root_is_the_guest(home: Home, host: Doctored) -> None:
    secret, here, mine = host.lookup("secret", ROOT), host.lookup("", ROOT), host.lookup("mine")
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDONLY | p.FMODE_EXEC):
        with refused():
            host.open(secret, flags, ROOT)
    with refused():
        host.lookup("hidden/deep", ROOT)
    with refused():
        host.ask(p.CREATE, ROOT, here, p.CREATE_IN.pack(os.O_RDWR | os.O_CREAT, 0o600, 0, 0) + b"new\0")
    with refused():
        host.ask(p.UNLINK, ROOT, here, b"secret\0")
    for node, owner in ((secret, USER), (mine, ROOT)):
        with refused(errno.EPERM):
            host.ask(p.SETATTR, ROOT, node, p.SETATTR_IN.pack(p.FATTR_UID, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, owner, 0, 0))
    with refused(errno.EPERM):
        host.ask(p.MKNOD, ROOT, host.lookup("own"), p.MKNOD_IN.pack(stat.S_IFCHR | 0o666, 0x103, 0, 0) + b"null\0")
    assert "asks as root for more of home's files than the guest may" in home.log.read_text()


def test_no_privilege_gets_into_a_file(host: Doctored) -> None:
    mine = host.lookup("mine")
    for name in (b"security.capability", b"trusted.x"):
        for uid in (USER, ROOT):
            with refused(errno.EPERM):
                host.ask(p.SETXATTR, uid, mine, p.XATTR_IN.pack(20, 0) + name + b"\0" + b"\1\0\0\2" + b"\xff" * 16)


def test_a_program_may_be_executed_without_being_read(host: Doctored) -> None:
    program = host.lookup("program")
    with refused():
        host.open(program)
    assert host.read(host.open(program, os.O_RDONLY | p.FMODE_EXEC)) == b"program"


def holder(path: Path, mode: str) -> subprocess.Popen[bytes]:
    """A process of the guest's user that holds a file which it could not open itself."""
    with path.open(mode) as f:
        code = "import sys; print(flush=True); sys.stdin.read()"
        h = subprocess.Popen(
            [sys.executable, "-c", code], pass_fds=[f.fileno()], user=USER, group=USER, extra_groups=[], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, cwd="/",
        )  # fmt: skip
    assert h.stdout is not None
    h.stdout.readline()
    return h


def test_what_the_original_holds_is_opened_again(home: Home, host: Doctored) -> None:
    deep = Path(home.here) / "hidden" / "deep"
    with holder(deep / "held", "rb") as h:
        assert scan([h.pid]).open[(deep / "held").stat().st_dev, (deep / "held").stat().st_ino] == 1
        home.ask("inherit", pids=[h.pid])
        held = host.lookup("hidden/deep/held", ROOT)
        assert host.read(host.open(held, os.O_RDONLY, ROOT)) == b"held"
        for flags in (os.O_RDWR, os.O_WRONLY, os.O_RDONLY | os.O_TRUNC):
            (deep / "held").chmod(0o600)
            with refused():
                host.open(held, flags, ROOT)
        for name in ("beside", "missing"):
            with refused():
                host.lookup(f"hidden/deep/{name}", ROOT)
        way = host.lookup("hidden/deep", ROOT)
        for uid in (USER, ROOT):  # the directory itself was lent only
            with refused():
                host.ask(p.LOOKUP, uid, way, b"beside\0")
            with refused():
                host.ask(p.OPENDIR, uid, way, p.OPEN_IN.pack(0, 0))
        h.communicate()


def test_a_number_that_was_used_again_holds_nothing(home: Home, host: Doctored) -> None:
    with holder(Path(home.here) / "hidden" / "deep" / "held", "rb") as h:
        home.ask("inherit", pids=[h.pid])
        h.communicate()
    with refused():
        host.lookup("hidden/deep/held", ROOT)


def test_the_next_host_opens_what_is_open_on_this_one(home: Home, host: Doctored) -> None:
    here = Path(home.here)
    host.open(host.lookup("mine"), os.O_RDWR)
    os.chown(here / "mine", 0, 0)
    following = Doctored(home)
    mine = following.lookup("mine", ROOT)
    assert following.read(following.open(mine, os.O_RDWR, ROOT)) == b"mine"
    with refused():
        following.open(mine, os.O_RDWR, USER)
    with refused():
        following.open(following.lookup("secret", ROOT), os.O_RDONLY, ROOT)
    following.sock.close()


def test_a_guest_of_roots_may_everything(home: Home, host: Doctored) -> None:
    home.ask("guest", guest=Guest(privileged=True).to_map())
    root = Doctored(home)
    assert root.read(root.open(root.lookup("secret", ROOT), os.O_RDONLY, ROOT)) == b"secret"
    assert root.read(root.open(root.lookup("theirs", OTHER), os.O_RDONLY, OTHER)) == b"theirs"
    root.sock.close()


def test_what_a_guest_that_comes_home_may_have_opened(home: Home, host: Doctored) -> None:
    here = Path(home.here)
    (here / "own" / "link").symlink_to(here / "secret")

    def closed(*files: tuple[str, int]) -> list[str]:
        told = home.ask("refused", files=[(str(here / name), needs) for name, needs in files])["files"]
        return [str(Path(p).relative_to(here)) for p in told]

    may = [("mine", READS | WRITES), ("program", RUNS), (".", 0), ("own/new", CHANGES), ("missing", READS)]
    assert closed(*may, ("../../../../../../dev/null", READS)) == []
    may_not = [
        ("theirs", READS),
        ("secret", WRITES),
        ("program", READS),
        ("hidden/deep/held", READS),
        ("new", CHANGES),
        ("own/link", READS),
    ]
    assert closed(*may_not) == [name for name, _ in may_not]
    assert closed(("hidden/deep", 0)) == ["hidden/deep"]
    with holder(here / "hidden" / "deep" / "held", "rb") as h:
        home.ask("inherit", pids=[h.pid])
        assert closed(("hidden/deep/held", READS)) == []
        assert closed(("hidden/deep/held", READS | WRITES), ("hidden/deep/beside", READS)) == ["hidden/deep/held", "hidden/deep/beside"]
        h.communicate()
    host.open(host.lookup("mine"), os.O_RDWR)
    os.chown(here / "mine", 0, 0)
    assert closed(("mine", READS | WRITES)) == [], "its host has it open for it"
    home.ask("guest", guest=Guest(privileged=True).to_map())
    assert closed(*may_not) == []


def test_who_the_guest_is() -> None:
    with subprocess.Popen(["sleep", "60"], user=USER, group=USER, extra_groups=[4711]) as s:
        assert Guest.of(s.pid, [s.pid]) == Guest(USER, USER, frozenset({USER}), frozenset({USER, 4711}))
        assert Guest.of(s.pid, [s.pid, os.getpid()]).privileged
        s.kill()
    assert Guest.of(os.getpid(), [os.getpid()]).privileged
