"""A destination does not restore what was not agreed: real images of a real process, changed as somebody who holds its source could."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import signal
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mig.criu import images, layout
from mig.criu.agreed import Agreement, objections
from mig.criu.opened import opened
from mig.homefs.guest import READS, RUNS, WRITES
from tests.kernel.criu_guest import SOCKET_OPTIONS, Guest, guests

USER = 65534


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """An ordinary user's process, dumped."""
    work = tmp_path_factory.mktemp("doctored")
    with guests(work) as start:
        g = start("count", user=USER, group=USER, extra_groups=[])
        g.dump()
        yield g


@pytest.fixture
def img(guest: Guest, tmp_path: Path) -> Path:
    """A copy of its images, to be changed."""
    return Path(shutil.copytree(guest.images, tmp_path / "img"))


@pytest.fixture
def agreed(guest: Guest) -> Agreement:
    return Agreement(frozenset({USER}), frozenset({USER}), frozenset({guest.pid}))


def change(path: Path, module: str, message: str, how: Callable[[Any], object]) -> None:
    magic, entries = images.read_entries(path, getattr(layout.image(module), message))
    for e in entries:
        how(e)
    images._write(path, magic, entries)


def core(img: Path, how: Callable[[Any], object]) -> None:
    (path,) = img.glob("core-*.img")
    change(path, "core", "core_entry", how)


def regular(img: Path, how: Callable[[Any], object], *, exe: bool = False) -> None:
    """Change what it has open, or what it executes."""
    (mm,) = images.read_entries(next(img.glob("mm-*.img")), layout.image("mm").mm_entry)[1]

    def one(e: Any) -> None:
        if e.HasField("reg") and (e.id == mm.exe_file_id) == exe:
            how(e.reg)

    change(img / "files.img", "fdinfo", "file_entry", one)


def add_file(img: Path, **fields: Any) -> None:
    magic, entries = images.read_entries(img / "files.img", layout.image("fdinfo").file_entry)
    images._write(img / "files.img", magic, [*entries, layout.image("fdinfo").file_entry(id=9999, **fields)])


def test_what_was_agreed_passes(img: Path, agreed: Agreement) -> None:
    assert objections(img, agreed) == []


def test_a_process_of_root_passes_where_root_is_let_in(img: Path, agreed: Agreement) -> None:
    core(img, lambda e: setattr(e.thread_core.creds, "euid", 0))
    assert objections(img, dataclasses.replace(agreed, root_allowed=True)) == []


@pytest.mark.parametrize("which", ["uid", "euid", "suid", "fsuid", "gid", "egid", "sgid", "fsgid"])
def test_root_is_refused(img: Path, agreed: Agreement, which: str) -> None:
    core(img, lambda e: setattr(e.thread_core.creds, which, 0))
    (why,) = objections(img, agreed)
    assert ("user 0" if "uid" in which else "group 0") in why and "not announced" in why


def test_a_further_group_is_refused(img: Path, agreed: Agreement) -> None:
    core(img, lambda e: e.thread_core.creds.groups.append(42))
    assert "group 42" in objections(img, agreed)[0]


@pytest.mark.parametrize("which", ["cap_inh", "cap_prm", "cap_eff", "cap_amb"])
def test_a_capability_is_refused(img: Path, agreed: Agreement, which: str) -> None:
    def doctor(e: Any) -> None:
        caps = getattr(e.thread_core.creds, which)
        caps[:] = [1 << 21, *list(caps)[1:]]  # CAP_SYS_ADMIN

    core(img, doctor)
    assert which in objections(img, agreed)[0]


@pytest.mark.parametrize(
    ("field", "value", "told"), [("sched_policy", 1, "scheduling"), ("sched_nice", -20, "nice")]
)  # fmt: skip
def test_a_better_place_in_the_scheduler_is_refused(img: Path, agreed: Agreement, field: str, value: int, told: str) -> None:
    core(img, lambda e: setattr(e.thread_core, field, value))
    assert told in objections(img, agreed)[0]


@pytest.mark.parametrize(
    "name",
    [
        "/dev/sda", "/dev/mem", "/dev/kmsg", "/dev/disk/by-id/x", "/dev/pts/../sda", "etc/shadow", "/proc/kcore", "/proc/sysrq-trigger",
        "/proc/sys/kernel/core_pattern", "/proc/1/root/etc/shadow", "/proc/self/mem", "/.cell/cg/cgroup.procs", "/.cell/criu/criu",
    ],
)  # fmt: skip
def test_a_foreign_file_is_refused(img: Path, agreed: Agreement, name: str) -> None:
    regular(img, lambda f: setattr(f, "name", name))
    assert any(name in why for why in objections(img, agreed))


def test_own_parts_of_proc_pass_and_only_to_read(img: Path, agreed: Agreement, guest: Guest) -> None:
    for name, flags, passes in (
        ("/proc/meminfo", 0, True), (f"/proc/{guest.pid}/maps", 0, True), (f"/proc/{guest.pid}/root/x", 0, False),
        (f"/proc/{guest.pid}/mem", 0, False), ("/proc/1/maps", 0, False), ("/proc/meminfo", os.O_RDWR, False),
        ("/dev/null", os.O_RDWR, True),
    ):  # fmt: skip
        regular(img, lambda f, n=name, o=flags: (setattr(f, "name", n), setattr(f, "flags", o)))  # type: ignore[misc]
        assert (objections(img, agreed) == []) is passes, (name, flags)


@pytest.mark.parametrize("flag", [os.O_CREAT, os.O_TRUNC, os.O_RDWR | os.O_CREAT | os.O_EXCL])
def test_no_file_is_made_or_emptied(img: Path, agreed: Agreement, flag: int) -> None:
    regular(img, lambda f: setattr(f, "flags", flag))
    assert any("made or emptied" in why for why in objections(img, agreed))


def test_what_is_opened_is_told_with_what_is_done_there(img: Path, guest: Guest) -> None:
    told = dict(opened(img))
    assert told[str(guest.out)] == WRITES and told[str(guest.program)] == RUNS and told[os.getcwd()] == 0
    library = next(path for path in told if "/libc.so" in path or "/libc-" in path)
    assert told[library] == READS
    regular(img, lambda f: setattr(f, "name", "/etc/../etc/shadow"))
    assert "/etc/shadow" in dict(opened(img))
    # what is called the program, or the working directory, and held open besides, is read
    (mm,) = images.read_entries(next(img.glob("mm-*.img")), layout.image("mm").mm_entry)[1]
    change(next(img.glob("fdinfo-*.img")), "fdinfo", "fdinfo_entry", lambda e: setattr(e, "id", mm.exe_file_id))
    assert dict(opened(img))[str(guest.program)] == READS


def test_a_set_user_id_program_is_refused(img: Path, agreed: Agreement) -> None:
    regular(img, lambda f: setattr(f, "mode", stat.S_IFREG | stat.S_ISUID | 0o755), exe=True)
    assert "set-user-id" in objections(img, agreed)[0]


@pytest.mark.parametrize("kind", ["INETSK", "PACKETSK", "NETLINKSK", "TUNF", "NS", "FANOTIFY", "INOTIFY", "BPFMAP", "EXT", "UND"])
def test_kernel_objects_are_refused(img: Path, agreed: Agreement, kind: str) -> None:
    add_file(img, type=layout.image("fdinfo").fd_types.Value(kind))
    assert kind in objections(img, agreed)[0]


@pytest.mark.parametrize(
    ("name", "directory", "passes"),
    [
        ("/tmp/x/sock\0", "", True), ("sock\0", "/var/tmp", True), ("/dev/shm/sock", "", True), ("sock", "", True),
        ("\0abstract", "", False), ("/dev/null", "", False), ("/proc/1/sock", "", False), ("../dev/null", "/tmp", False),
        ("/run/criu.kdat", "", False), ("criu", "/.cell/criu", False), ("/dev\0", "", False),
    ],
)  # fmt: skip
def test_a_unix_socket_is_bound_among_home_s_files_only(img: Path, agreed: Agreement, name: str, directory: str, passes: bool) -> None:
    """CRIU, which is root, removes what has the name."""
    usk = {"id": 9999, "ino": 1, "type": 1, "state": 10, "flags": 0, "uflags": 0, "backlog": 1, "peer": 0, "name": name.encode()}
    usk |= {"fown": {"uid": USER, "euid": USER, "signum": 0, "pid_type": 0, "pid": 0}, "opts": {}} | (
        {"name_dir": directory} if directory else {}
    )
    add_file(img, type=layout.image("fdinfo").fd_types.Value("UNIXSK"), usk=usk | {"opts": SOCKET_OPTIONS})
    assert (objections(img, agreed) == []) is passes, objections(img, agreed)


def test_signals_in_the_name_of_root_are_refused(img: Path, agreed: Agreement) -> None:
    def doctor(f: Any) -> None:
        f.fown.pid, f.fown.uid, f.fown.euid, f.fown.signum = 1, 0, 0, signal.SIGKILL

    regular(img, doctor)
    assert "user 0" in objections(img, agreed)[0]


@pytest.mark.parametrize("name", ["mountpoints-1", "netdev-9", "ipcns-var-10", "binfmt-misc", "tmpfs-dev-3", "userns-2", "route-9", "../x"])
def test_an_image_of_another_kind_is_refused(img: Path, agreed: Agreement, name: str) -> None:
    (img / f"{name.replace('../', '..')}.img").write_bytes(bytes(8))
    assert "no guest has" in objections(img, agreed)[0]


def test_a_namespace_of_its_own_is_refused(img: Path, agreed: Agreement) -> None:
    (path,) = img.glob("ids-*.img")
    change(path, "core", "task_kobj_ids_entry", lambda e: setattr(e, "user_ns_id", 77))
    assert "user namespace" in objections(img, agreed)[0]


@pytest.mark.parametrize(
    ("mode", "rdev"), [(stat.S_IFCHR | 0o666, os.makedev(1, 1)), (stat.S_IFBLK | 0o666, os.makedev(8, 0)), (stat.S_IFREG | 0o4755, 0)]
)
def test_a_deleted_file_that_is_a_device_or_set_id_is_refused(img: Path, agreed: Agreement, mode: int, rdev: int) -> None:
    e = layout.image("ghost_file").ghost_file_entry(uid=0, gid=0, mode=mode, rdev=rdev)
    b = e.SerializeToString()
    (img / "ghost-file-1.img").write_bytes(bytes(8) + struct.pack("<I", len(b)) + b)
    assert "deleted file" in objections(img, agreed)[0]


@pytest.mark.parametrize("damage", ["flipped", "cut", "emptied"])
def test_damaged_images_never_raise_and_lost_pieces_are_refused(guest: Guest, agreed: Agreement, tmp_path: Path, damage: str) -> None:
    """A flipped bit may lie where it grants nothing; an image cut short or emptied lacks something that must be there."""
    chance = random.Random(20)
    for i in range(40):
        img = Path(shutil.copytree(guest.images, tmp_path / str(i)))
        looked_at = [p for p in img.glob("*.img") if p.name.startswith(("core", "files", "mm", "pstree", "inventory", "ids"))]
        path = chance.choice(looked_at)
        data = bytearray(path.read_bytes())
        if damage == "flipped":
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        else:
            del data[chance.randrange(len(data)) if damage == "cut" else 0 :]
        path.write_bytes(data)
        found = objections(img, agreed)
        assert found or damage == "flipped" or path.name == "files.img", (path.name, len(data))
        shutil.rmtree(img)
