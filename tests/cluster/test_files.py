"""Files of a process that moves: all of them stay home's, open ones stay as they are."""

from __future__ import annotations

from typing import Any

import pytest

from .helpers import Servant, servant

FLOCK = "flock -n /tmp/locked true"
ROUND = ("n2", "n3", "home")


def fcntl_free(lab: Any) -> bool:
    """Whether another process at home gets the record lock."""
    r = lab.run("n1", ["python3", "-S", "-c", "import fcntl; fcntl.lockf(open('/tmp/locked', 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"])
    assert r.returncode in (0, 1)
    return int(r.returncode) == 0


def go_round(s: Servant, *route: str) -> Any:
    """Move along, telling where."""
    for to in route or ROUND:
        s.move(to)
        yield to


def test_offsets_and_appending(lab: Any) -> None:
    lab.run("n1", "rm -f /tmp/w /tmp/a; seq 100000 100999 > /tmp/r; echo first > /tmp/a", check=True)
    with servant(lab) as s:
        s.do("r = os.open('/tmp/r', os.O_RDONLY); w = os.open('/tmp/w', os.O_RDWR | os.O_CREAT, 0o640); d = os.dup(w)")
        s.do("a = os.open('/tmp/a', os.O_WRONLY | os.O_APPEND)")
        expected, appended = "", "first\n"
        for i, to in enumerate(("start", *ROUND)):
            if i:
                s.move(to)
            assert s.ask("os.read(r, 7)") == b"%d\n" % (100000 + i)
            s.do(f"os.write(w, b'{to}\\n'); os.write(d, b'dup\\n'); os.write(a, b'{to}\\n')")
            lab.run("n1", f"echo by-home-{i} >> /tmp/a", check=True)
            expected += f"{to}\ndup\n"
            appended += f"{to}\nby-home-{i}\n"
            assert s.ask("os.lseek(d, 0, os.SEEK_CUR)") == len(expected)
            assert lab.run("n1", "cat /tmp/w").stdout == expected, "home sees it at once"
            assert lab.run("n1", "cat /tmp/a").stdout == appended
            assert s.ask("os.pread(w, 100000, 0).decode()") == expected
        assert s.ask("oct(os.fstat(w).st_mode)") == "0o100640"


def test_unlinked_and_renamed(lab: Any) -> None:
    with servant(lab) as s:
        s.do("u = os.open('/tmp/u', os.O_RDWR | os.O_CREAT); os.write(u, b'gone'); os.unlink('/tmp/u')")
        s.do("n = os.open('/tmp/old', os.O_RDWR | os.O_CREAT); os.rename('/tmp/old', '/tmp/new')")
        for to in go_round(s):
            s.do(f"os.write(u, b'+{to}'); os.write(n, b'+{to}')")
            assert s.ask("os.fstat(u).st_nlink") == 0
        assert s.ask("os.pread(u, 100, 0)") == b"gone+n2+n3+home"
        assert lab.run("n1", "cat /tmp/new").stdout == "+n2+n3+home"
        assert s.ask("os.path.exists('/tmp/u') or os.path.exists('/tmp/old')") is False


def test_unlinked_while_away(lab: Any) -> None:
    with servant(lab) as s:
        s.do("f = os.open('/tmp/later', os.O_RDWR | os.O_CREAT); os.write(f, b'still here')")
        s.move("n2")
        lab.run("n1", "rm /tmp/later", check=True)
        assert s.ask("os.pread(f, 100, 0)") == b"still here"
        lab.wait_for(lambda: s.ask("os.path.exists('/tmp/later')") is False, 5)
        s.move("n3")
        assert s.ask("os.pread(f, 100, 0)") == b"still here"
        s.move("home")
        assert s.ask("os.pread(f, 100, 0)") == b"still here"


def test_mappings(lab: Any) -> None:
    lab.run("n1", "yes 0123456789abcde | head -c 16384 > /tmp/m; cp /tmp/m /tmp/p", check=True)
    with servant(lab) as s:
        s.do("f = open('/tmp/m', 'r+b'); m = mmap.mmap(f.fileno(), 16384)")
        s.do("g = open('/tmp/p', 'rb'); p = mmap.mmap(g.fileno(), 16384, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)")
        s.do("p[:5] = b'DIRTY'; m[:4] = b'home'; anon = mmap.mmap(-1, 1 << 20); anon[-5:] = b'share'")
        for to in go_round(s):
            assert s.ask("(p[:5], p[5:16], p[4096:4112], anon[-5:])") == (b"DIRTY", b"56789abcde\n", b"0123456789abcde\n", b"share")
            s.do(f"m[4096:4104] = {to.encode()!r}.ljust(8); m.flush()")
            assert lab.run("n1", "head -c 4104 /tmp/m | tail -c 8").stdout == to.ljust(8)
        assert s.ask("m[:4]") == b"home"
        assert lab.run("n1", "head -c 5 /tmp/p").stdout == "01234", "private is private"


@pytest.mark.parametrize("kind", ["flock", "lockf"])
def test_locks(lab: Any, kind: str) -> None:
    def free() -> bool:
        return lab.run("n1", FLOCK).returncode == 0 if kind == "flock" else fcntl_free(lab)

    lab.run("n1", "touch /tmp/locked", check=True)
    with servant(lab) as s:
        s.do(f"f = open('/tmp/locked', 'r+'); fcntl.{kind}(f, fcntl.LOCK_EX)")
        assert not free()
        for to in go_round(s, "n2", "n3", "home", "n2"):
            assert not free(), f"held for others at home while on {to}"
        s.do(f"fcntl.{kind}(f, fcntl.LOCK_UN)")
        assert free()
        s.do(f"fcntl.{kind}(f, fcntl.LOCK_EX)")
        assert not free()
        assert s.end() == 0
        lab.wait_for(free, what="the lock of a guest that ended is free")


def test_a_lock_that_the_guest_waits_for(lab: Any) -> None:
    lab.run("n1", "touch /tmp/locked; rm -f /tmp/go", check=True)
    holder = lab.spawn("n1", "flock /tmp/locked bash -c 'touch /tmp/held; while [ ! -e /tmp/go ]; do sleep 0.05; done'")
    lab.wait_for(lambda: lab.path("n1", "/tmp/held").exists())
    with servant(lab) as s:
        s.do("f = open('/tmp/locked', 'r+')")
        s.move("n2")
        s.begin("fcntl.flock(f, fcntl.LOCK_EX)")
        lab.run("n1", "sleep 0.3")
        assert not s.answered()
        lab.run("n1", "touch /tmp/go", check=True)
        s.answer()
        lab.wait_for(lambda: not lab.alive("n1", holder))
        assert lab.run("n1", FLOCK).returncode == 1


@pytest.mark.parametrize("uid", [0, 1000])
def test_new_files_belong_to_the_user_at_home(lab: Any, uid: int) -> None:
    lab.run("n1", "rm -rf /tmp/mine; install -d -m 777 /tmp/mine; echo secret > /tmp/mine/root; chmod 600 /tmp/mine/root", check=True)
    with servant(lab, uid) as s:
        s.do("os.umask(0o027)")
        for to in go_round(s):
            s.do(f"open('/tmp/mine/{to}', 'w').write('{to}'); os.mkdir('/tmp/mine/d{to}'); os.symlink('{to}', '/tmp/mine/l{to}')")
            assert lab.run("n1", f"stat -c '%u %g %a' /tmp/mine/{to} /tmp/mine/d{to}; cat /tmp/mine/l{to}").stdout == (
                f"{uid} {uid} 640\n{uid} {uid} 750\n{to}"
            )
            may = s.ask("os.access('/tmp/mine/root', os.R_OK)")
            assert may is (uid == 0)
        assert not lab.path("n2", "/tmp/mine").exists(), "the host has none of it"


def test_what_exists_only_at_home(lab: Any) -> None:
    lab.run("n2", "echo wrong > /tmp/who; mkdir -p /tmp/only-n2", check=True)
    lab.run("n1", "echo before > /tmp/who; rm -rf /tmp/dir", check=True)
    with servant(lab) as s:
        s.move("n2")
        assert s.ask("open('/tmp/who').read()") == "before\n"
        lab.run("n1", "echo after > /tmp/who; mkdir /tmp/dir; touch /tmp/dir/x /tmp/dir/y", check=True)
        lab.wait_for(lambda: s.ask("open('/tmp/who').read()") == "after\n", 5, "what home writes is read")
        assert s.ask("sorted(os.listdir('/tmp/dir'))") == ["x", "y"]
        assert s.ask("os.path.exists('/tmp/only-n2')") is False
        s.do("import colorsys, wave")  # modules that were not loaded before
        lab.run("n1", "rm -r /tmp/dir", check=True)
        lab.wait_for(lambda: s.ask("os.path.exists('/tmp/dir')") is False, 5)


def test_other_programs(lab: Any) -> None:
    script = "/usr/local/bin/only-home"
    lab.run("n1", f"printf '#!/bin/sh\\necho script of home $1\\n' > {script}; chmod 755 {script}", check=True)
    with servant(lab, cwd="/tmp") as s:
        for to in go_round(s):
            assert s.ask("subprocess.run(['only-home', 'x'], capture_output=True, text=True).stdout") == "script of home x\n", to
            line = "hostname; pwd; id -u; exit 3"
            assert s.ask(f"subprocess.run('{line}', shell=True, capture_output=True, text=True).stdout") == "n1\n/tmp\n0\n"
            assert s.ask("subprocess.run('kill -9 $$', shell=True).returncode") == -9


def test_directories_and_empty_descriptors(lab: Any) -> None:
    lab.run("n1", "rm -rf /tmp/many; mkdir /tmp/many; cd /tmp/many; touch $(seq 1 300)", check=True)
    with servant(lab) as s:
        s.do("d = os.open('/tmp/many', os.O_RDONLY | os.O_DIRECTORY); p = os.open('/tmp/many/1', os.O_PATH)")
        s.do("n = os.open('/dev/null', os.O_RDWR)")
        s.do("z = os.open('/dev/zero', os.O_RDONLY); u = os.open('/dev/urandom', os.O_RDONLY)")
        for to in go_round(s):
            assert s.ask("len(os.listdir(d))") == 300, to
            assert s.ask("os.readlink(f'/proc/self/fd/{p}')") == "/tmp/many/1"
            assert s.ask("(os.write(n, b'x'), os.read(n, 1), os.read(z, 2), len(os.read(u, 9)))") == (1, b"", b"\0\0", 9)
