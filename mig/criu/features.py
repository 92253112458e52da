"""What the CRIU of this machine can do here, asked once per boot: features, never version numbers, decide what we try."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from mig import paths
from mig.criu import layout
from mig.criu.log import CriuError, errors
from mig.criu.session import Worker
from mig.kernel import libc, pidfd
from mig.model import Mapped

KDAT = Path("/run/criu.kdat")
"""CRIU's own cache of what it found out about the kernel; saves 22-50 ms at each start.  Only kept where /run is a tmpfs."""
_KDAT_TMP = Path("/run/criu.kdat.tmp")


@dataclass(frozen=True)
class Features(Mapped):
    """What a node can do with CRIU; plain values, so that it can be gossiped."""

    version: str = ""
    check: bool = False  # `criu check` passes
    problem: str = ""  # why it does not
    mem_track: bool = False  # soft-dirty page tracking
    lazy_pages: bool = False  # CRIU finds userfaultfd fit for post-copy
    pidfd_store: bool = False
    uffd: bool = False  # userfaultfd with kernel faults is allowed to us
    shim: bool = False  # CAP_SYS_RESOURCE is missing: the shim is preloaded
    kerndat: bool = False  # the cache of kernel facts is in place


def probe(*, fresh: bool = False) -> Features:
    """The features, from this boot's cache (``RUN/criu-features.json``) or, the first time, by trying: 0.2 s, blocking.

    Never raises for a missing or failing CRIU: then ``check`` is False and ``problem`` says why.
    """
    cache, key = paths.RUN / "criu-features.json", _cache_key()
    if not fresh:
        try:
            found = json.loads(cache.read_text())
            if found.pop("key") == key:
                return Features.from_map(found)
        except (OSError, ValueError, KeyError, AttributeError):
            pass  # no cache, or not ours: find out
    got = _find_out()
    try:
        cache.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        new = cache.with_name(f"{cache.name}.{os.getpid()}")
        new.write_text(json.dumps({**dataclasses.asdict(got), "key": key}))
        os.replace(new, cache)
    except OSError:
        pass  # not root, or a read-only /run: asked again next time
    return got


def _cache_key() -> list[str]:
    try:
        st = os.stat(layout.command()[-1])
        program = f"{st.st_ino}.{st.st_mtime_ns}"
    except FileNotFoundError:
        program = ""
    return [pidfd.boot_id(), program, str(layout.needs_shim()), str(os.geteuid())]


def _find_out() -> Features:
    drop_stale_kerndat()
    try:
        done = subprocess.run([*layout.command(), "check"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as e:
        return Features(problem=f"CRIU does not run: {e}", shim=layout.needs_shim(), uffd=userfaultfd())
    said = done.stdout + done.stderr
    problem = "" if done.returncode == 0 else [*errors(said), *said.strip().splitlines()[-1:], "criu check failed"][0]
    try:
        version, have = _ask()
    except (CriuError, ImportError) as e:
        return Features(problem=problem or str(e), shim=layout.needs_shim(), uffd=userfaultfd())
    return Features(
        version=version,
        check=done.returncode == 0,
        problem=problem,
        uffd=userfaultfd(),
        shim=layout.needs_shim(),
        kerndat=KDAT.exists(),
        **have,
    )


def _ask() -> tuple[str, dict[str, bool]]:
    rpc = layout.rpc()
    worker = Worker.start()
    try:
        v = worker.call(rpc.criu_req(type=rpc.VERSION, keep_open=True)).version
        req = rpc.criu_req(type=rpc.FEATURE_CHECK)
        names = [f.name for f in req.features.DESCRIPTOR.fields]
        for name in names:
            setattr(req.features, name, True)
        answer = worker.call(req).features
    finally:
        worker.close()
    version = f"{v.major_number}.{v.minor_number}" + (f".{v.sublevel}" if v.sublevel else "")
    return version, {name: getattr(answer, name, False) for name in ("mem_track", "lazy_pages", "pidfd_store")}


def drop_stale_kerndat() -> None:
    """Remove an empty ``criu.kdat.tmp``: CRIU creates it exclusively, so one left by a killed CRIU keeps the cache away for ever."""
    try:
        st = _KDAT_TMP.stat()
        if st.st_size == 0 and time.time() - st.st_mtime > 2:  # a CRIU that is at work fills it at once
            _KDAT_TMP.unlink()
    except (FileNotFoundError, PermissionError):
        pass


def userfaultfd() -> bool:
    """Whether this process may create a userfaultfd that also catches faults of the kernel."""
    try:
        os.close(libc.userfaultfd(os.O_CLOEXEC))
    except OSError as e:
        if e.errno in (errno.EPERM, errno.ENOSYS, errno.EACCES):
            return False
        raise
    return True
