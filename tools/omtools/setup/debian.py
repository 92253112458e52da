"""Debian and Ubuntu packages: what is missing, and the machine's own package sources."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

from omtools.setup.base import SetupError, need_root, run, say

# package -> a command or path that shows it is there (however it came); "" asks dpkg
PACKAGES: dict[str, dict[str, str]] = {
    "base": {
        "gcc": "gcc",
        "git": "git",
        "libc6-dev": "/usr/include/stdio.h",
        "libssl-dev": "/usr/include/openssl/ssl.h",
        "parallel": "parallel",
        "iproute2": "ip",
        "procps": "ps",
        "util-linux": "unshare",
        "xz-utils": "xz",
    },
    "demo": {"povray": "povray", "povray-includes": "", "povray-examples": ""},
    "bench": {"runc": "runc"},
    # what the tests of logins need is unpacked, not installed: omtools.setup.logins
    "test": {
        "zsh": "zsh",
        "fish": "fish",
        "groff": "groff",
        # a node of the lab is booted by it; on a machine that has another pid 1 it lies there unused
        "systemd": "/usr/lib/systemd/systemd",
        "dbus": "dbus-daemon",
        "libpam-systemd": "",
    },
    "soak": {"default-jdk-headless": "javac", "povray": "povray", "redis-tools": "redis-check-rdb"},
}
_STATUS = Path("/var/lib/dpkg/status")
_ADMIN_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _installed() -> set[str]:
    found = set()
    for paragraph in _STATUS.read_text(errors="replace").split("\n\n") if _STATUS.exists() else ():
        m = re.match(r"Package: (\S+)\nStatus: install ok installed", paragraph)
        if m:
            found.add(m.group(1))
    return found


def _there(sign: str) -> bool:
    if sign.startswith("/"):
        return os.path.exists(sign)
    return shutil.which(sign, path=f"{os.environ.get('PATH', '')}:{_ADMIN_PATH}") is not None


def missing(groups: list[str]) -> list[str]:
    """Packages of these groups that are not there."""
    wanted = {p: sign for g in groups for p, sign in PACKAGES[g].items()}
    absent = [p for p, sign in wanted.items() if sign and not _there(sign)]
    by_dpkg = [p for p, sign in wanted.items() if not sign]
    have = _installed() if by_dpkg else set()
    if importlib.util.find_spec("ensurepip") is None:  # Debian splits it off, and without it there is no venv with pip
        absent.append("python3-venv")
    return absent + [p for p in by_dpkg if p not in have]


def install(groups: list[str]) -> None:
    """Install what is missing with apt."""
    absent = missing(groups)
    if not absent:
        return
    need_root(f"to install packages: {' '.join(absent)}")
    if shutil.which("apt-get") is None:
        raise SetupError(f"these are missing: {' '.join(absent)}", "this is not Debian or Ubuntu: install them by hand, then run it again")
    say(f"installing {' '.join(absent)}")
    command = ["apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=300", "install", "--no-install-recommends", *absent]
    try:
        run(command)
    except SetupError:  # lists that are missing or out of date
        run(["apt-get", "-q", "update"], hint="is the network there, and do the machine's package sources answer?")
        run(command, hint="see what apt says; `apt-get install` the packages by hand, then run it again")


def load_fuse() -> None:
    """Only the kernel's side of FUSE is needed; the device node appears with the module."""
    if os.path.exists("/dev/fuse") or shutil.which("modprobe", path=_ADMIN_PATH) is None:
        return
    try:
        run(["modprobe", "fuse"])
    except SetupError as e:
        say(f"no /dev/fuse, and the module does not load: {e}")  # `mosctl doctor` will tell; compiling and linting work without


@dataclass(frozen=True)
class Source:
    """One of the machine's own package sources: mirror, suites, and the keyring that signs it ("": apt's default)."""

    uri: str
    suites: tuple[str, ...]
    signed_by: str


def _one_line(text: str) -> list[Source]:
    found = []
    for line in text.splitlines():
        m = re.match(r"deb\s+(?:\[([^]]*)\]\s+)?(\S+)\s+(\S+)\s", line + " ")
        if m:
            signed = re.search(r"signed-by=(\S+)", m.group(1) or "")
            found.append(Source(m.group(2), (m.group(3),), signed.group(1) if signed else ""))
    return found


def _deb822(text: str) -> list[Source]:
    found = []
    for paragraph in re.split(r"\n\s*\n", re.sub(r"(?m)^#.*\n?", "", text)):
        field = dict(re.findall(r"(?m)^([A-Za-z-]+):[ \t]*(.*)$", paragraph))
        if "deb" in field.get("Types", "").split() and field.get("Enabled", "yes") != "no" and field.get("URIs"):
            signed = field.get("Signed-By", "")
            found.append(Source(field["URIs"].split()[0], tuple(field.get("Suites", "").split()), signed if signed.startswith("/") else ""))
    return found


def os_release() -> dict[str, str]:
    """/etc/os-release."""
    lines = Path("/etc/os-release").read_text().splitlines()
    return {k: "".join(shlex.split(v)) for k, _, v in (line.partition("=") for line in lines) if v}


def main_source() -> Source:
    """The mirror from which this machine gets the release itself (not its security updates); raises where there is none."""
    codename = os_release().get("VERSION_CODENAME", "")
    etc = Path("/etc/apt")
    parts = sorted((etc / "sources.list.d").glob("*")) if (etc / "sources.list.d").is_dir() else []
    found: list[Source] = []
    for path in [etc / "sources.list", *parts]:
        if path.suffix in (".list", ".sources") and path.is_file():
            text = path.read_text(errors="replace")
            found += _deb822(text) if path.suffix == ".sources" else _one_line(text)
    for s in found:
        if {codename, "stable", "testing", "unstable", "sid", "devel"} & set(s.suites):
            return s
    raise SetupError(f"no package source of this machine carries {codename or 'its own release'}", "see /etc/apt/sources.list.d")
