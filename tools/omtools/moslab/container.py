"""Launching a node: namespaces, its own writable overlay of the machine's root, /dev, /run, and pid 1.

The child that becomes the node's pid 1 is forked by ``moslab`` itself and execs :mod:`omtools.moslab.init` once the node's tree is its
root; it reports on a pipe that the exec closes.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import stat
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import omtools
from mig.errors import MigError
from mig.kernel import libc

from . import init, limits
from .lab import Lab, Node

CONFIG = "/etc/mig/omdiscd.toml"
KEY = "/etc/mig/cluster.key"
DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0), "fuse": (10, 229)}
TUN = (10, 200)
BOOT_ID = "/proc/sys/kernel/random/boot_id"
NAMESPACES = libc.CLONE_NEWNS | libc.CLONE_NEWUTS | libc.CLONE_NEWIPC | libc.CLONE_NEWPID | libc.CLONE_NEWNET | libc.CLONE_NEWCGROUP


@dataclass
class Disk:
    """What is written into a node's disk when it is new."""

    config: str
    key: bytes


class Launch:
    """A node on its way up; several may be on their way at once."""

    def __init__(self, lab: Lab, node: Node, disk: Disk | None) -> None:
        """Start it; with ``disk`` None the node boots again from the disk that it has."""
        self.node = node
        self._pid_file = lab.pid_file(node)
        reading, writing = os.pipe()
        self._launcher = os.fork()
        if self._launcher == 0:
            os.close(reading)
            _launcher(lab, node, disk, writing)
        os.close(writing)
        self._report = os.fdopen(reading)

    def pid(self) -> int:
        """Its pid 1 as the machine sees it, as soon as its namespaces are there; raises :class:`MigError` with what failed.  Call once."""
        line = self._report.readline()
        os.waitpid(self._launcher, 0)
        if not line.startswith("pid "):
            raise MigError(f"{self.node.name} cannot be started: {line.strip() or 'its launcher was killed'}")
        # written here: the launcher shares the node's mount namespace, where this path ends as soon as pid 1 changes the root
        self._pid_file.write_text(line[4:].strip())
        return int(line[4:])

    def wait(self) -> None:
        """Until its pid 1 serves requests; raises :class:`MigError` with what failed.  Call once, after :meth:`pid`."""
        with self._report as f:
            failure = f.read().strip()
        if failure:
            raise MigError(f"{self.node.name} cannot be started: {failure}")


def _launcher(lab: Lab, node: Node, disk: Disk | None, report: int) -> NoReturn:
    """In the first child: enter the groups, make the namespaces, fork pid 1, end."""
    try:
        limits.join_node(lab, node)
        directory = lab.node_directory(node)
        directory.mkdir(exist_ok=True)
        lab.socket(node).unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(lab.socket(node)))
        listener.listen(64)
        libc.unshare(NAMESPACES)
        pid = os.fork()
        if pid:
            os.write(report, f"pid {pid}\n".encode())
            os._exit(0)
        os.setsid()
        socket.sethostname(node.name)
        _make_tree(lab, node, directory)
        if limits.v1_cpu() is not None:
            Path(init.CPU_WORK, "cgroup.procs").write_text("0")
        _write_files(lab, node, disk)
        _become_init(listener, report)
    except BaseException as e:
        os.write(report, f"{type(e).__name__}: {e}\n".encode())
    finally:
        os._exit(1)


def _make_tree(lab: Lab, node: Node, directory: Path) -> None:
    """Mount the node's file systems and make them the root."""
    libc.mount("none", "/", None, libc.MS_REC | libc.MS_PRIVATE)
    root = directory / "root"
    for d in ("upper", "work", "root"):
        (directory / d).mkdir(exist_ok=True)
    libc.mount("overlay", root, "overlay", 0, f"lowerdir=/,upperdir={directory}/upper,workdir={directory}/work")
    for path in _elsewhere():
        (root / path.relative_to("/")).mkdir(parents=True, exist_ok=True)
        libc.mount(path, root / path.relative_to("/"), None, libc.MS_BIND)
    libc.mount("proc", root / "proc", "proc", libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC)
    libc.mount("sysfs", root / "sys", "sysfs", libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC)
    _mount_cgroups(root / "sys/fs/cgroup")
    if (root / "sys/fs/fuse/connections").is_dir():
        libc.mount("fusectl", root / "sys/fs/fuse/connections", "fusectl")
    _make_dev(root / "dev")
    libc.mount("tmpfs", root / "run", "tmpfs", libc.MS_NOSUID | libc.MS_NODEV, "mode=755")
    # each start of a node is a boot of its own: what asks for the boot id must see another one after a power loss
    boot_id = root / "run/moslab/boot_id"
    boot_id.parent.mkdir()
    boot_id.write_text(f"{uuid.uuid4()}\n")
    boot_id.chmod(0o444)
    libc.mount(boot_id, f"{root}{BOOT_ID}", None, libc.MS_BIND)
    if lab.criu_cache.exists():
        shutil.copy(lab.criu_cache, root / "run/criu.kdat")
    os.chdir(root)
    libc.pivot_root(".", ".")
    libc.umount2(".", libc.MNT_DETACH)
    os.chdir("/")


def _elsewhere() -> list[Path]:
    """Directories of the project and of its Python that are not on the root file system: the overlay does not show them."""
    device = os.stat("/").st_dev
    return sorted(p for p in _own_places() if p.stat().st_dev != device)


def _own_places() -> set[Path]:
    """Where the project and its Python lie."""
    project = Path(omtools.__file__).resolve().parents[2]
    return {Path(p).resolve() for p in (sys.prefix, sys.base_prefix, Path(sys.executable).resolve().parent, project)}


def _mount_cgroups(where: Path) -> None:
    """cgroup2 at the place where the machine has it, and the v1 cpu controllers beside it if that is how the machine is set up."""
    v1 = limits.v1_cpu()
    if v1 is None:
        libc.mount("cgroup2", where, "cgroup2")
        return
    libc.mount("tmpfs", where, "tmpfs", 0, "mode=755")
    (where / "unified").mkdir()
    libc.mount("cgroup2", where / "unified", "cgroup2")
    (where / "cpu").mkdir()
    libc.mount("cgroup", where / "cpu", "cgroup", 0, limits.v1_controllers(v1))


def _make_dev(dev: Path) -> None:
    libc.mount("tmpfs", dev, "tmpfs", libc.MS_NOSUID, "mode=755")
    devices = dict(DEVICES)
    if os.path.exists("/dev/net/tun"):
        (dev / "net").mkdir()
        devices["net/tun"] = TUN
    for name, (major, minor) in devices.items():
        os.mknod(dev / name, stat.S_IFCHR | 0o666, os.makedev(major, minor))
        (dev / name).chmod(0o666)  # past the umask
    for d in ("pts", "shm", "mqueue"):
        (dev / d).mkdir()
    libc.mount("devpts", dev / "pts", "devpts", libc.MS_NOSUID | libc.MS_NOEXEC, f"newinstance,ptmxmode=0666,mode=620,gid={init.TTY_GROUP}")
    libc.mount("tmpfs", dev / "shm", "tmpfs", libc.MS_NOSUID | libc.MS_NODEV, "mode=1777")
    libc.mount("mqueue", dev / "mqueue", "mqueue", libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC)
    for name, target in (("ptmx", "pts/ptmx"), ("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        (dev / name).symlink_to(target)


def _write_files(lab: Lab, node: Node, disk: Disk | None) -> None:
    """A new disk's own files.  Runs with the node's tree as root, so that no absolute link leads back to the machine's files."""
    if disk is None:
        return
    Path("/etc/hostname").write_text(f"{node.name}\n")
    Path("/etc/hosts").write_text("127.0.0.1\tlocalhost\n" + "".join(f"{n.addr}\t{n.name}\n" for n in lab.nodes))
    Path("/etc/machine-id").write_text(f"{secrets.token_hex(16)}\n")
    for directory in {d for p in _own_places() for d in p.parents}:
        directory.chmod(directory.stat().st_mode | 0o011)  # users of the node run the tools, even from a clone in /root
    Path(CONFIG).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    Path(CONFIG).write_text(disk.config)
    key = os.open(KEY, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.fchmod(key, 0o600)
    os.write(key, disk.key)
    os.close(key)


def _become_init(listener: socket.socket, report: int) -> NoReturn:
    """Exec pid 1; its output goes to a file in the node."""
    null = os.open("/dev/null", os.O_RDWR)
    log = os.open(f"{init.STATE}/init.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for target, fd in enumerate((null, log, log)):
        os.dup2(fd, target)
    for fd in (null, log):
        os.close(fd)
    os.set_inheritable(listener.fileno(), True)
    os.set_inheritable(report, False)
    argv = [sys.executable, "-I", "-S", "-B", os.path.realpath(init.__file__), str(listener.fileno())]
    os.execve(sys.executable, argv, {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"})
