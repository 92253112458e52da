"""What this node tells of itself beside its load: kernel, CPU, CRIU's features, swap, pressure."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import platform
import re
import struct
import sys
from pathlib import Path

from mig.criu import features
from mig.model import NodeInfo
from mig.tasks import beat
from omdiscd.resources import own_cgroup

_ASK = "from mig.criu import features; from omdiscd import node_facts; print(node_facts.criu_features(features.probe()))"
_PRESSURE_S = 4.0
"""The kernel brings avg10 up to date every two seconds; half as often costs half."""


class Facts:
    """Keeps ``info`` true: once what does not change, then what does."""

    def __init__(self, info: NodeInfo) -> None:
        self.info = info
        info.kernel, info.cpu = platform.release(), cpu()
        self.look()

    async def run(self) -> None:
        """Until cancelled."""
        self.info.criu = await _ask_criu()
        while True:
            self.look()
            await beat(_PRESSURE_S)

    def look(self) -> None:
        """Swap and pressure, now."""
        self.info.swap_total, self.info.swap_free = swap()
        self.info.psi_cpu, self.info.psi_mem = pressure("cpu"), pressure("memory")


async def _ask_criu() -> str:
    """In a process of its own: CRIU's messages would stay in our memory."""
    p = await asyncio.create_subprocess_exec(sys.executable, "-c", _ASK, stdout=asyncio.subprocess.PIPE)
    try:
        out, _ = await p.communicate()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            p.kill()
        await p.wait()
        raise
    return out.decode().strip() if p.returncode == 0 else ""


def criu_features(f: features.Features) -> str:
    """As it is told: ``4.2.1 lazy_pages uffd``; ``unfit`` where CRIU itself says that this kernel is not for it."""
    on = [n for n in ("mem_track", "lazy_pages", "pidfd_store", "uffd", "shim") if getattr(f, n)]
    return " ".join([f.version or "none", *([] if f.check else ["unfit"]), *on])


def swap() -> tuple[int, int]:
    """Total and free bytes of swap of the machine."""
    found = re.findall(r"^Swap(?:Total|Free): +(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return (int(found[0]) << 10, int(found[1]) << 10) if len(found) == 2 else (0, 0)


def pressure(what: str) -> float:
    """PSI's ``some avg10`` in per cent: of our cgroup, else of the machine; -1 where the kernel does not count it."""
    group = own_cgroup("")
    places = [group / f"{what}.pressure"] if group else []
    for file in (*places, Path("/proc/pressure") / what):
        try:
            m = re.match(r"some avg10=([\d.]+)", file.read_text())
        except OSError:
            continue  # not compiled in, switched off (EOPNOTSUPP), or a cgroup without the file
        if m:
            return float(m[1])
    return -1.0


def cpu() -> str:
    """Architecture, digest of what the CPU can, and the size of its register area: ``x86_64-5f1b2c3d4e5f-2696``.

    CRIU restores a process only where the CPU has all features that it had, and where xsave areas have equal sizes: between nodes with one
    text that is certain.
    """
    flags: set[str] = set()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):
                flags = set(value.split())
                break
    except OSError:
        pass
    digest = hashlib.blake2s(" ".join(sorted(flags)).encode(), digest_size=6).hexdigest()
    return f"{platform.machine()}-{digest}-{xsave_size()}"


def xsave_size() -> int:
    """Bytes of the register area that the kernel saves (AT_MINSIGSTKSZ covers it); 0 where it does not say."""
    try:
        auxv = Path("/proc/self/auxv").read_bytes()
    except OSError:
        return 0
    word = struct.calcsize("@L")
    for at in range(0, len(auxv) - 2 * word + 1, 2 * word):
        kind, value = struct.unpack_from("@LL", auxv, at)
        if kind == 51:  # AT_MINSIGSTKSZ
            return int(value)
    return 0
