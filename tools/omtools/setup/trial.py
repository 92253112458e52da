"""Does this CRIU work on this kernel?  Ask it, then let it dump and restore a process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from omtools.setup.base import environment

# a listening socket shows whether CRIU knows this kernel's socket options
_GUEST = "import socket, time; s = socket.create_server(('127.0.0.1', 0)); print('ready', flush=True); time.sleep(600)"
_COMMON = ["--shell-job", "--manage-cgroups=ignore", "-v4"]


def problem(directory: Path) -> str:
    """Why the self-contained CRIU in ``directory`` does not do; "" when it does."""
    criu = [str(directory / "ld.so"), "--library-path", str(directory / "lib"), str(directory / "criu")]
    with tempfile.TemporaryDirectory(prefix="mig-criu-trial-") as images:
        try:
            return _command([*criu, "check"], None) or _round_trip(criu, Path(images))
        except (OSError, subprocess.TimeoutExpired) as e:
            return str(e)


def _command(argv: list[str], log: Path | None) -> str:
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", env=environment(), timeout=60)
    if done.returncode == 0:
        return ""
    text = (log.read_text(errors="replace") if log and log.exists() else "") + done.stdout + done.stderr
    # without CAP_SYS_RESOURCE it complains about its own limit first, and goes on
    errors = [line for line in re.findall(r"Error \(.*", text) if "RLIMIT_NOFILE" not in line]
    return (errors or text.strip().splitlines()[-1:] or [f"exit status {done.returncode}"])[0]


def _round_trip(criu: list[str], images: Path) -> str:
    with (images / "out").open("wb") as out:
        guest = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _GUEST], stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    try:
        while (images / "out").read_bytes() != b"ready\n":
            if guest.poll() is not None:
                return "the trial process did not start"
            time.sleep(0.01)
        where = ["-D", str(images), *_COMMON]
        said = _command([*criu, "dump", "-t", str(guest.pid), *where, "-o", "dump.log"], images / "dump.log")
    finally:
        guest.kill()  # CRIU killed it already when the dump succeeded
        guest.wait()
    if said:
        return f"dump: {said}"
    said = _command([*criu, "restore", *where, "-o", "restore.log", "-d", "--pidfile", "pid"], images / "restore.log")
    if said:
        return f"restore: {said}"
    pid = int((images / "pid").read_text())
    os.kill(pid, signal.SIGKILL)
    return ""
