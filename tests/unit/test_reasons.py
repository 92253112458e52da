"""The judgement of what was seen: every kind of obstacle, from plain data."""

from __future__ import annotations

import os
import socket
import stat
from typing import Any

import pytest

from mig.inspect.kinds import KINDS
from mig.inspect.reasons import Obstacle, cannot_move, obstacles, pipe_direction, pts_index, sentence
from mig.inspect.scene import Holder, Mapping, Member, OpenFile, Scene, Socket

PTS = os.makedev(136, 3)
CHR, BLK, REG, FIFO = stat.S_IFCHR | 0o600, stat.S_IFBLK | 0o600, stat.S_IFREG | 0o644, stat.S_IFIFO | 0o600
SHELL = Holder(70, "bash", 1, "rw")
MIB = 1 << 20


def member(pid: int = 100, **k: Any) -> Member:
    return Member(pid, k.pop("comm", "job"), **({"sid": 50, "ppid": 70} | k))


def scene_of(m: Member, *more: Member, **k: Any) -> Scene:
    return Scene((m, *more), **k)


def found(scene: Scene) -> list[str]:
    return [o.kind for o in obstacles(scene)]


def with_file(f: OpenFile, **k: Any) -> list[str]:
    return found(scene_of(member(files=(f,), tty_nr=k.pop("tty_nr", 0)), **k))


def unix(fd: int = 3, ino: int = 9, peer: int = 0, **k: Any) -> OpenFile:
    return OpenFile(fd, f"socket:[{ino}]", socket=Socket(socket.AF_UNIX, k.pop("type", socket.SOCK_STREAM), ino, peer=peer, **k))


PROCESS = [
    ("init", member(1)),
    ("kernel-thread", member(kernel_thread=True)),
    ("zombie", member(state="Z")),
    ("dead-leader", member(state="Z", threads=3)),
    ("hidden", member(hidden=True)),
    ("traced", member(tracer=4)),
    ("ours", member(role="omdiscd")),
    ("deputy", member(role="deputy")),
    ("32-bit", member(bits=32)),
    ("vfork", member(borrows_memory_of="its parent, make (7)")),
    ("namespace", member(namespaces=("mnt", "pid"))),
    ("session-leader", member(sid=100, tty_nr=PTS)),
    ("outside-session", member(sid=0)),
    ("console", member(tty_nr=os.makedev(4, 1))),
    ("console", member(tty_nr=os.makedev(4, 64))),
    ("ghost", member(exe="/tmp/a", exe_ghost=65 * MIB)),
]
FILES = [
    ("other-terminal", OpenFile(3, "/dev/pts/4", mode=CHR, rdev=os.makedev(136, 4)), {"tty_nr": PTS}),
    ("other-terminal", OpenFile(3, "/dev/tty1", mode=CHR, rdev=os.makedev(4, 1)), {}),
    ("pty-master", OpenFile(3, "/dev/ptmx", mode=CHR, rdev=os.makedev(5, 2), tty_index=4), {"held": {"/dev/pts/4": [SHELL]}}),
    ("pty-master", OpenFile(3, "/dev/ptmx", mode=CHR, rdev=os.makedev(5, 2), tty_index=4), {"same": {(100, 3): [SHELL]}}),
    ("inet-socket", OpenFile(3, "socket:[9]", socket=Socket(socket.AF_INET, socket.SOCK_STREAM, 9, "1.2.3.4:5", True)), {}),
    ("inet-socket", OpenFile(3, "socket:[9]", socket=Socket(socket.AF_INET6, socket.SOCK_DGRAM, 9)), {}),
    ("socket", OpenFile(3, "socket:[9]", socket=Socket(socket.AF_NETLINK, socket.SOCK_RAW, 9)), {}),
    ("socket", OpenFile(3, "socket:[9]", socket=Socket(77, socket.SOCK_RAW, 9)), {}),
    ("unix-peer", unix(peer=10), {}),
    ("unix-peer", unix(peer=10), {"held": {"socket:[10]": [SHELL]}}),
    ("unix-peer", unix(), {"held": {"socket:[9]": [SHELL]}}),
    ("unix-listener", unix(listening=True, bound=True, where="/run/x"), {}),
    ("unix-listener", unix(bound=True, type=socket.SOCK_DGRAM, where="/run/x"), {}),
    ("abstract-socket", unix(listening=True, bound=True, where="@x"), {"own_sockets": True}),
    ("unix-peer", unix(listening=True, bound=True, where="/run/x"), {"own_sockets": True, "held": {"socket:[9]": [SHELL]}}),
    ("device", OpenFile(3, "/dev/kmsg", mode=CHR, rdev=os.makedev(1, 11)), {}),
    ("device", OpenFile(3, "/dev/fuse", mode=CHR, rdev=os.makedev(10, 229)), {}),
    ("device", OpenFile(3, "/dev/vda", mode=BLK, rdev=os.makedev(1, 3)), {}),
    ("gpu", OpenFile(3, "/dev/dri/renderD128", mode=CHR, rdev=os.makedev(226, 128)), {}),
    ("io_uring", OpenFile(3, "anon_inode:[io_uring]"), {}),
    ("kernel-object", OpenFile(3, "anon_inode:[userfaultfd]"), {}),
    ("kernel-object", OpenFile(3, "anon_inode:bpf-map"), {}),
    ("kernel-object", OpenFile(3, "anon_inode:[perf_event]"), {}),
    ("file-watch", OpenFile(3, "anon_inode:inotify"), {}),
    ("file-watch", OpenFile(3, "anon_inode:[fanotify]"), {}),
    ("pidfd", OpenFile(3, "anon_inode:[pidfd]", watched_pid=70), {}),
    ("shared-object", OpenFile(3, "anon_inode:[eventfd]"), {"same": {(100, 3): [SHELL]}}),
    ("fifo", OpenFile(3, "/tmp/fifo", mode=FIFO), {"held": {"/tmp/fifo": [SHELL]}}),
    ("two-way-pipe", OpenFile(3, "pipe:[5]", os.O_RDWR), {"held": {"pipe:[5]": [SHELL]}}),
    ("other-mount", OpenFile(3, "/data/x", mnt_id=9, mode=REG), {"mounts": frozenset({1, 2})}),
    ("ghost", OpenFile(3, "/data/x (deleted)", mode=REG, disk=65 * MIB), {}),
    ("shared-deleted", OpenFile(3, "/tmp/x (deleted)", mode=REG), {"held": {"/tmp/x (deleted)": [SHELL]}}),
    ("proc-file", OpenFile(3, "/proc/70/stat", mode=REG), {}),
    ("shared-memory", OpenFile(3, "/memfd:x (deleted)", mode=REG), {"held": {"/memfd:x (deleted)": [SHELL]}}),
    ("named-memory", OpenFile(3, "/dev/shm/x", mode=REG), {}),
]
MAPPINGS = [
    ("shared-memory", Mapping("/dev/zero (deleted)", True, True, (0, 1), 44)),
    ("shared-memory", Mapping("/data/db", True, True, (0, 1), 44)),
    ("named-memory", Mapping("/dev/shm/x", True, True, (0, 1), 45)),
    ("sysv-memory", Mapping("/SYSV00000000 (deleted)", True, True, (0, 1), 45)),
    ("huge-pages", Mapping("/anon_hugepage (deleted)", False, True, (0, 15), 46)),
    ("huge-pages", Mapping("/dev/hugepages/x", True, True, (0, 15), 46)),
    ("io_uring", Mapping("anon_inode:[io_uring]", True, True, (0, 15), 46)),
    ("kernel-object", Mapping("anon_inode:[perf_event]", True, True, (0, 15), 46)),
    ("gpu", Mapping("/dev/nvidia0", True, True, (0, 15), 46)),
    ("device", Mapping("/dev/mem", True, True, (0, 15), 46)),
    ("ghost", Mapping("/usr/lib/x.so (deleted)", False, False, (8, 1), 46, 65 * MIB)),
]
WORLD: dict[str, Any] = {"mapped": {((0, 1), 44): [SHELL]}, "hugetlbfs": ("/dev/hugepages",)}


@pytest.mark.parametrize(("kind", "m"), PROCESS)
def test_a_process_that_cannot_move(kind: str, m: Member) -> None:
    assert found(scene_of(m)) == [kind]


@pytest.mark.parametrize(("kind", "f", "around"), FILES)
def test_a_descriptor_that_cannot_move(kind: str, f: OpenFile, around: dict[str, Any]) -> None:
    assert with_file(f, **around) == [kind]


@pytest.mark.parametrize(("kind", "v"), MAPPINGS)
def test_a_mapping_that_cannot_move(kind: str, v: Mapping) -> None:
    assert found(scene_of(member(mappings=(v,)), **WORLD)) == [kind]


def test_every_kind_has_a_case_here() -> None:
    tried = {c[0] for c in (*PROCESS, *FILES, *MAPPINGS)} | {"foreign-session", "asker"}
    assert tried == set(KINDS)


def test_a_member_of_another_session_whose_leader_is_elsewhere() -> None:
    assert found(scene_of(member(), member(101, sid=99))) == ["foreign-session"]
    assert found(scene_of(member(), member(101, sid=101), member(102, sid=101))) == []


HARMLESS = [
    OpenFile(0, "/dev/null", mode=CHR, rdev=os.makedev(1, 3)),
    OpenFile(1, "/dev/pts/3", mode=CHR, rdev=PTS),
    OpenFile(2, "/dev/tty", mode=CHR, rdev=os.makedev(5, 0)),
    OpenFile(3, "/etc/passwd", mode=REG, mnt_id=1),
    OpenFile(4, "/tmp/gone (deleted)", mode=REG, disk=63 * MIB, mnt_id=1),
    OpenFile(5, "/dev/shm/gone (deleted)", mode=REG, mnt_id=2),
    OpenFile(6, "anon_inode:[eventpoll]"),
    OpenFile(7, "anon_inode:[pidfd]", watched_pid=100),
    OpenFile(8, "anon_inode:[pidfd]", watched_pid=-1),
    OpenFile(9, "/tmp/fifo", mode=FIFO, mnt_id=1),
    OpenFile(10, "/memfd:x (deleted)", mode=REG, mnt_id=0),
    OpenFile(11, "/proc/100/status", mode=REG, mnt_id=1),
    OpenFile(12, "pipe:[5]", os.O_RDONLY),
    OpenFile(13, "pipe:[6]", os.O_RDWR),
    unix(14, 20, 21),
    unix(15, 21, 20),
    unix(16, 22),
    OpenFile(17, "/dev/ptmx", mode=CHR, rdev=os.makedev(5, 2), tty_index=8),
    OpenFile(18, "/dev/pts/8", mode=CHR, rdev=os.makedev(136, 8)),
]


def test_what_travels_or_is_proxied_is_no_obstacle() -> None:
    maps = (
        Mapping("/dev/zero (deleted)", True, True, (0, 1), 50),
        Mapping("/usr/lib/gconv.cache", True, False, (8, 1), 51),
        Mapping("/usr/lib/x.so (deleted)", False, False, (8, 1), 46, MIB),
        Mapping("/dev/zero", False, True, (0, 6), 5),
    )
    m = member(files=tuple(HARMLESS), mappings=maps, tty_nr=PTS)
    assert cannot_move(scene_of(m, held={"pipe:[5]": [SHELL]}, mounts=frozenset({1, 2}))) == []


def test_a_session_leader_without_a_terminal_or_with_one_served_inside_may_move() -> None:
    assert found(scene_of(member(sid=100))) == []
    master = OpenFile(3, "/dev/ptmx", mode=CHR, rdev=os.makedev(5, 2), tty_index=3)
    assert found(scene_of(member(files=(master,)), member(101, sid=101, tty_nr=PTS))) == []


def test_zombies_below_the_root_travel_but_a_dead_main_thread_does_not() -> None:
    assert found(scene_of(member(), member(101, state="Z"))) == []
    assert found(scene_of(member(), member(101, state="Z", threads=2))) == ["dead-leader"]


def test_whatever_hangs_below_init_does_not_matter() -> None:
    assert found(scene_of(member(1), member(2, tracer=5))) == ["init"]


def test_a_guest_is_only_asked_what_is_new() -> None:
    m = member(sid=100, tty_nr=PTS, namespaces=("mnt", "pid"), files=(OpenFile(0, "pipe:[5]", os.O_RDWR), unix(3, 9, 10)))
    assert found(scene_of(m, guest=True, known_pipes={"pipe:[5]": 0})) == ["unix-peer"]


def test_one_sentence_names_process_descriptors_and_remedy() -> None:
    s = Socket(socket.AF_INET, socket.SOCK_STREAM, 9, "10.0.0.1:5000 to 10.0.0.2:80")
    m = member(files=(OpenFile(3, "socket:[9]", socket=s), OpenFile(7, "socket:[9]", socket=s)))
    (reason,) = cannot_move(scene_of(m))
    assert reason == (
        "job (100) has a TCP socket (10.0.0.1:5000 to 10.0.0.2:80) open as descriptors 3, 7: "
        "close its network connections, or wait until it has none"
    )


def test_who_asks_is_named_and_what_he_has_open_is_not() -> None:
    migrate = member(101, comm="migrate", ppid=100, files=(unix(3, 9, 10),))
    assert found(scene_of(member(), migrate)) == ["unix-peer"]
    assert found(scene_of(member(), migrate, asker=101)) == ["asker"]
    assert found(scene_of(member(), asker=101)) == []


def test_every_reason_of_several_processes_is_listed() -> None:
    bad = (OpenFile(3, "anon_inode:[io_uring]"), OpenFile(4, "/dev/kmsg", mode=CHR, rdev=os.makedev(1, 11)))
    reasons = cannot_move(scene_of(member(files=bad), member(101, comm="kid", files=bad)))
    assert len(reasons) == 4
    assert [r.split(")")[0] for r in reasons] == ["job (100", "job (100", "kid (101", "kid (101"]


def test_many_holders_and_descriptors_are_shortened() -> None:
    crowd = [Holder(n, f"p{n}") for n in range(5)] + [Holder(0, "p0")]
    files = tuple(OpenFile(n, "pipe:[5]", os.O_RDWR) for n in range(10))
    (reason,) = cannot_move(scene_of(member(files=files), held={"pipe:[5]": crowd}))
    assert "descriptors 0, 1, 2, 3, 4, 5, 6, 7 …" in reason
    assert "p0 (0), p1 (1), p2 (2) and others" in reason


R, W = os.O_RDONLY, os.O_WRONLY


@pytest.mark.parametrize(("flags", "direction"), [((R,), "r"), ((W, W), "w"), ((R, W), "rw")])
def test_the_direction_of_a_pipe_is_that_of_the_whole_tree(flags: tuple[int, ...], direction: str) -> None:
    members = [member(100 + n, files=(OpenFile(3, "pipe:[5]", f | os.O_NONBLOCK),)) for n, f in enumerate(flags)]
    assert pipe_direction(scene_of(*members), "pipe:[5]") == direction


def test_pseudo_terminals_by_device_number() -> None:
    assert pts_index(os.makedev(136, 0)) == 0
    assert pts_index(os.makedev(136, 300)) == 300
    assert pts_index(os.makedev(137, 1)) == 257
    assert pts_index(os.makedev(4, 1)) == -1
    assert pts_index(0) == -1


def test_all_sentences_can_be_filled() -> None:
    m = member()
    for kind in KINDS:
        said = sentence(Obstacle(kind, m, "WHAT", "OTHER"), [3])
        assert said.startswith("job (100)") or kind == "dead-leader"
        assert "{" not in said
