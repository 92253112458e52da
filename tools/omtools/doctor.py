"""What this machine can and cannot do for migration, each finding with its remedy: the library behind ``mosctl doctor``."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from mig import paths
from mig.criu import features, layout
from mig.kernel import cgroup


@dataclass(frozen=True)
class Check:
    """One finding.  ``ok``: True works; False does not, and moves will fail; None works, with less comfort or speed."""

    name: str
    ok: bool | None
    detail: str
    remedy: str = ""

    def line(self) -> str:
        """As one line of text: sign, name, detail, remedy."""
        sign = {True: "ok  ", False: "FAIL", None: "note"}[self.ok]
        return f"{sign} {self.name}: {self.detail}" + (f" ({self.remedy})" if self.remedy else "")


def diagnose() -> list[Check]:
    """Look at everything that migration needs; never raises, changes nothing but CRIU's own caches."""
    root = os.geteuid() == 0
    found = features.probe()
    return [
        _root(root),
        _kernel(),
        *_criu(found),
        _kerndat(found),
        _capability(found),
        _shim(),
        _userfaultfd(found),
        _fuse(root),
        _freezer(root),
        _cgroup_cpu(),
        _namespaces(root),
        _program("deputy"),
        _program("relay"),
        _memory(),
    ]


def _root(root: bool) -> Check:
    return Check("root", root, "yes" if root else f"no, user {os.geteuid()}", "" if root else "run it as root")


def _kernel() -> Check:
    machine, release = platform.machine(), platform.release()
    if machine != "x86_64":
        return Check("kernel", False, f"{release} on {machine}", "x86-64 only")
    major, minor = (int(n) for n in release.split(".")[:2])
    if (major, minor) < (5, 14):  # cgroup.kill
        return Check("kernel", False, release, "5.14 or newer is needed (cgroup.kill)")
    return Check("kernel", True, f"{release} on {machine}")


def _criu(found: features.Features) -> list[Check]:
    if not found.version:
        return [Check("criu", False, found.problem or "not found", "run `make env`")]
    if not found.check:
        return [Check("criu", False, f"{found.version}: {found.problem}", "run `make env`, which tries newer ones")]
    have = [name for name in ("mem_track", "lazy_pages", "pidfd_store") if getattr(found, name)]
    return [Check("criu", True, f"{found.version}, `criu check` passes; features: {', '.join(have) or 'none'}")]


def _kerndat(found: features.Features) -> Check:
    if found.kerndat or features.KDAT.exists():
        return Check("criu kernel cache", True, str(features.KDAT))
    if _filesystem("/run") != "tmpfs":
        return Check("criu kernel cache", None, "none, /run is not a tmpfs", "each move prepares 20-50 ms longer; mount a tmpfs on /run")
    return Check("criu kernel cache", None, "not written yet", "run `criu check` once per boot; omdiscd does")


def _capability(found: features.Features) -> Check:
    if not found.shim:
        return Check("CAP_SYS_RESOURCE", True, "yes")
    return Check("CAP_SYS_RESOURCE", True, "missing; the shim answers CRIU's questions about other users' limits instead")


def _shim() -> Check:
    if problem := layout.shim_problem():
        return Check("shim", False, problem, "run `make env`, which compiles it; until then memory travels inside the pause")
    return Check("shim", True, f"{layout.base()}/shim.so belongs to this version")


def _userfaultfd(found: features.Features) -> Check:
    if found.uffd:
        return Check("userfaultfd", True, "yes, with faults of the kernel")
    return Check("userfaultfd", None, "not allowed: memory travels inside the pause", "allow it in the container's seccomp profile")


def _fuse(root: bool) -> Check:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return Check("fuse", False, "no /dev/fuse", "modprobe fuse")
    except OSError as e:
        return Check("fuse", False, f"/dev/fuse: {e.strerror}", "allow the device in this container" if root else "run it as root")
    return Check("fuse", True, "/dev/fuse opens")


def _freezer(root: bool) -> Check:
    try:
        where = cgroup.root()
    except OSError as e:
        return Check("freezer", False, str(e), "mount cgroup2")
    if not root:
        return Check("freezer", None, f"cgroup v2 at {where}, not tried", "run it as root")
    probe = where / f"mig-doctor-{os.getpid()}"
    try:
        probe.mkdir()
    except OSError as e:
        return Check("freezer", False, f"{where} cannot be written: {e.strerror}", "give this container a writable cgroup2 mount")
    try:
        lacks = [f for f in ("cgroup.freeze", "cgroup.kill") if not (probe / f).exists()]
    finally:
        probe.rmdir()
    if lacks:
        return Check("freezer", False, f"{where} lacks {', '.join(lacks)}", "Linux 5.14 or newer is needed")
    return Check("freezer", True, f"cgroup v2 at {where}")


def _cgroup_cpu() -> Check:
    lines = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    v1 = next((f[1] for f in lines if f[2] == "cgroup" and "cpu" in f[3].split(",")), "")
    if v1:
        return Check("cpu quotas", True, f"cgroup v1 at {v1}")
    for f in lines:
        controllers = Path(f[1]) / "cgroup.controllers"
        if f[2] == "cgroup2" and controllers.exists() and "cpu" in controllers.read_text().split():
            return Check("cpu quotas", True, f"cgroup v2 at {f[1]}")
    return Check("cpu quotas", None, "no cpu controller", "lab nodes share the CPU without limits")


def _namespaces(root: bool) -> Check:
    kinds = ("pid", "mnt", "uts", "ipc", "net", "cgroup")
    lacks = [k for k in kinds if not os.path.exists(f"/proc/self/ns/{k}")]
    if lacks:
        return Check("namespaces", False, f"the kernel lacks {', '.join(lacks)}", "enable CONFIG_NAMESPACES and its parts")
    if not root:
        return Check("namespaces", None, "there, not tried", "run it as root")
    unshare = shutil.which("unshare")
    if unshare is None:
        return Check("namespaces", False, "no `unshare` to try with", "install util-linux")
    done = subprocess.run(
        [unshare, "--pid", "--mount", "--uts", "--ipc", "--net", "--cgroup", "--fork", "--mount-proc", "true"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        return Check("namespaces", False, said[0], "this container may not make any: run on the machine itself")
    return Check("namespaces", True, ", ".join(kinds))


def _program(name: str) -> Check:
    """One of our own compiled programs."""
    program = paths.libexec() / name
    if os.access(program, os.X_OK):
        return Check(name, True, str(program))
    return Check(name, False, f"{program} is missing", "run `make env`, which compiles it")


def _memory() -> Check:
    free = os.statvfs("/dev/shm") if os.path.isdir("/dev/shm") else os.statvfs("/tmp")
    mib = free.f_bavail * free.f_frsize >> 20
    if mib >= 512:
        return Check("room for images", True, f"{mib} MiB in memory")
    return Check("room for images", None, f"{mib} MiB in memory", "larger processes go through the disk; enlarge /dev/shm")


def _filesystem(path: str) -> str:
    """Type of the file system mounted at ``path`` itself, "" where none is."""
    lines = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    return next((f[2] for f in reversed(lines) if f[1] == path), "")
