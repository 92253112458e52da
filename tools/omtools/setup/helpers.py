"""The C programs: the deputy, static and without libc; mospam, which PAM calls; CRIU's shim, preloaded; the relay, linked with OpenSSL."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path

from omtools.setup.base import LIBEXEC, ROOT, SetupError, run, say, stamp, stamped

_DEPUTY = [
    *("-O1", "-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector", "-fno-builtin", "-fcf-protection=none"),
    *("-fno-pie", "-no-pie", "-Wl,--build-id=none", "-Wl,-z,noseparate-code", "-s"),
]
_MOSPAM = ["-O2", "-Wall", "-Wextra", "-static", "-s"]
_SHIM = ["-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Wno-builtin-declaration-mismatch"]
_RELAY = ["-O2", "-Wall", "-Wextra", "-pie", "-fPIE", "-fstack-protector-strong", "-D_FORTIFY_SOURCE=2", "-Wl,-z,relro,-z,now"]
_LIBRARIES: list[str | Path] = ["-lssl", "-lcrypto"]
SHIM = LIBEXEC / "shim.so"


def build() -> None:
    """Compile what is missing or older than its source."""
    if platform.machine() != "x86_64":
        raise SetupError(f"this machine is {platform.machine()}", "the deputy and the kernel layer know x86-64 only")
    _compile(ROOT / "mig" / "deputy" / "deputy.c", LIBEXEC / "deputy", _DEPUTY)
    _compile(ROOT / "mig" / "pam" / "mospam.c", LIBEXEC / "mospam", _MOSPAM)
    shim = ROOT / "mig" / "criu" / "shim.c"
    _compile(shim, SHIM, [*_SHIM, f'-DMIG_SOURCE="{hashlib.sha256(shim.read_bytes()).hexdigest()}"'])
    trust = ROOT / "mig" / "trust"
    _compile(trust / "relay.c", LIBEXEC / "relay", _RELAY, [trust / "lasting.c", *_LIBRARIES], [trust / "relay.h", trust / "lasting.c"])


def _compile(source: Path, target: Path, flags: list[str], more: Sequence[str | Path] = (), parts: Sequence[Path] = ()) -> None:
    """``more``: further words for the compiler; ``parts``: files that belong to the source."""
    text = b"".join(p.read_bytes() for p in (source, *parts))
    key = f"{hashlib.sha256(text).hexdigest()} {' '.join(map(str, [*flags, *more]))}"
    if stamped(target.name, key) and target.exists():
        return
    compiler = shutil.which("gcc")
    if compiler is None:
        raise SetupError(f"no C compiler to build {source.name} with", "on Debian and Ubuntu: apt-get install gcc libc6-dev")
    say(f"compiling {source.name}")
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(target.name + ".new")
    run([compiler, *flags, "-o", new, source, *more])
    os.replace(new, target)  # a running deputy keeps the old file
    stamp(target.name, key)
