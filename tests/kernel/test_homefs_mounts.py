"""The life of a mount: greeting, coherence, two mounts at a time, loss of the connection."""

from __future__ import annotations

import os
import signal
import socket
import time

import pytest

from mig.homefs import mount
from mig.homefs import protocol as p
from tests.kernel.homefs_host import Home, Host, home, host

__all__ = ["home", "host"]


@pytest.mark.parametrize("greeting", [p.GREETING.pack(bytes(32), p.REQUESTS, bytes(16)), b"GET / HTTP/1.1\r\nHost: home\r\n\r\n" * 3])
def test_a_caller_without_the_token_learns_nothing(home: Home, greeting: bytes) -> None:
    with socket.create_connection(("127.0.0.1", home.port), timeout=10) as s:
        s.sendall(greeting)
        try:
            assert s.recv(1) == b""
        except ConnectionResetError:
            pass  # it had said more than a greeting
    with pytest.raises(mount.MountError, match="did not accept"):
        mount.connect("127.0.0.1", home.port, bytes(32))
    assert home.ask("mounts") == {"op": "mounts", "mounts": []}


def test_nobody_listens(home: Home) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        with pytest.raises(mount.MountError, match="cannot be reached"):
            mount.connect("127.0.0.1", s.getsockname()[1], bytes(32))


def test_nonsense_from_a_host_ends_its_mount_only(home: Home, host: Host) -> None:
    channels, notify = mount.connect("127.0.0.1", home.port, home.token)
    channels[0].sendall(p.IN_HEADER.pack(p.IN_HEADER.size, p.OPEN, 3, 1, 0, 0, 0, 0, 0))  # a body is missing
    assert p.OUT_HEADER.unpack(channels[0].recv(p.OUT_HEADER.size))[1:] == (-5, 3)
    name = b"../etc/passwd\0"
    channels[0].sendall(p.IN_HEADER.pack(p.IN_HEADER.size + len(name), p.LOOKUP, 4, 1, 0, 0, 0, 0, 0) + name)
    assert p.OUT_HEADER.unpack(channels[0].recv(p.OUT_HEADER.size))[1:] == (-22, 4)
    channels[0].sendall(b"\xff" * 100)
    for s in (*channels, notify):
        s.settimeout(10)
        try:
            assert s.recv(1) == b""
        except ConnectionResetError:
            pass
        s.close()
    assert host.run('print(os.path.exists("."))') == "True"


def test_a_rename_at_home_is_seen_after_expire(home: Home, host: Host) -> None:
    home.run("""
        os.makedirs("dir/sub"); open("dir/sub/file", "w").write("old")
        os.makedirs("new/sub"); open("new/sub/file", "w").write("a new and longer one")
    """)
    # mounted on top, as a cell has it: must survive
    guest = host.start("""
        os.mkdir("top"); libc.unshare(libc.CLONE_NEWNS); libc.mount("tmpfs", "top", "tmpfs"); open("top/mine", "w").close()
        assert open("dir/sub/file").read() == "old"
        say("read"); sys.stdin.readline()
        assert open("dir/sub/file").read() == "a new and longer one"
        assert os.listdir("top") == ["mine"]
    """)
    assert guest.line() == "read"
    home.run('os.rename("dir", "gone"); os.rename("new", "dir")')
    assert home.ask("expire") == {"op": "expired", "complete": True}
    guest.end()


def test_what_home_writes_is_seen_within_the_second(home: Home, host: Host) -> None:
    guest = host.start("""
        open("file", "w").write("one")
        f = open("file"); assert f.read() == "one"
        say("read"); sys.stdin.readline()
        time.sleep(1.1); assert os.stat("file").st_size == 6
        f.seek(0); assert f.read() == "second" and open("file").read() == "second"
    """)
    assert guest.line() == "read"
    home.run('open("file", "w").write("second")')
    guest.end()


def test_two_mounts_at_a_time(home: Home, host: Host) -> None:
    other = home.host()
    assert sorted(home.ask("mounts")["mounts"]) == sorted([host.mount_id, other.mount_id])
    first = host.start('f = open("shared", "w+"); f.write("1"); f.flush(); say("open"); sys.stdin.readline(); f.seek(0); say(f.read())')
    assert first.line() == "open"
    assert other.run('print(os.stat("shared").st_ino, open("shared").read())') == f"{os.stat(home.here + '/shared').st_ino} 1"
    other.run('open("shared", "r+").write("2")')
    home.hosts.remove(other)
    other.end()
    first.go_on()
    time.sleep(1.1)
    assert first.line() == "2" or home.run('print(open("shared").read())') == "2"
    first.end()


def test_a_lost_server_means_errors_and_no_waiting(home: Home, host: Host) -> None:
    guest = host.start("""
        f = open("file", "w"); say("open"); sys.stdin.readline()
        for call in (lambda: os.write(f.fileno(), b"x"), lambda: os.stat("other"), lambda: os.open("file", os.O_RDONLY)):
            assert fails(call) in ("ENOTCONN", "ECONNABORTED", "EIO")
        os._exit(0)
    """)
    assert guest.line() == "open"
    home.proc.send_signal(signal.SIGKILL)
    home.proc.wait()
    guest.end()
    for pid in host.pumps:
        end = time.monotonic() + 10
        while _runs(pid) and time.monotonic() < end:
            time.sleep(0.01)
        assert not _runs(pid)


def test_the_answer_to_a_waiting_request_is_an_error_when_the_server_stops(home: Home, host: Host) -> None:
    home.proc.send_signal(signal.SIGSTOP)
    guest = host.start('assert fails(os.stat, "anything") in ("ENOTCONN", "ECONNABORTED", "EIO")', cwd="/")
    time.sleep(0.2)
    os.kill(host.pumps[1], signal.SIGKILL)
    os.kill(host.pumps[2], signal.SIGKILL)
    home.proc.send_signal(signal.SIGCONT)
    guest.communicate(timeout=10)


def test_writes_and_reads_both_ways_at_once_do_not_block_each_other(home: Home, host: Host) -> None:
    """Each direction fills the buffers of the connection: a pump that waited to send without reading would stand still for ever."""
    home.run('open("big", "wb").write(b"r" * (32 << 20))')
    readers = [
        host.start("""
            for i in range(4):
                fd = os.open("big", os.O_RDONLY | os.O_DIRECT); b = mmap.mmap(-1, 8 << 20)
                assert sum(os.preadv(fd, [b], off << 20) for off in range(0, 32, 8)) == 32 << 20
        """)
        for _ in range(2)
    ]
    code = 'fd = os.open("out", os.O_WRONLY | os.O_CREAT)\nfor i in range(32): os.write(fd, bytes(1 << 20))'
    writers = [host.start(code) for _ in range(2)]
    for s in readers + writers:
        s.end()


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
