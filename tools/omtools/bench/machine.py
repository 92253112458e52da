"""What was measured on: figures without their machine say nothing."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path

from mig.criu import layout

GIB = 1 << 30


def available() -> int:
    """Bytes of memory that programs could still get."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return 0


def load() -> str:
    """The load averages of 1, 5 and 15 minutes."""
    return " ".join(f"{x:.1f}" for x in os.getloadavg())


def describe() -> dict[str, str]:
    """Date, processor, cores, memory, kernel, and the versions of what is compared."""
    cpu = next((line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), platform.machine())
    total = next(int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal:"))
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": f"{len(os.sched_getaffinity(0))} x {cpu}",
        "memory": f"{(total << 10) / GIB:.0f} GiB",
        "kernel": platform.release(),
        "criu": _version([*layout.command(), "--version"]),
        "runc": _version(["runc", "--version"]),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def _version(argv: list[str]) -> str:
    try:
        said = subprocess.run(argv, capture_output=True, text=True).stdout.splitlines()
    except FileNotFoundError:
        return ""
    return said[0].split()[-1] if said else ""
