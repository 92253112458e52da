"""``python -m omtools.bench.peers PROGRAM LAB``: what else there is, measured the same way: CRIU by itself, and runc, which calls it.

Each line read is a JSON map ``{"peer", "mib"}``, each line written the answer.  It is to be started as pid 1 of a pid and mount
namespace of its own (:func:`command`): there /run is a tmpfs, as on any ordinary machine and in our nodes (CRIU keeps what it learned of
the kernel there; without it each start costs 20-50 ms more), images lie in memory as ours do, and with pid 1 all of it is gone.  It joins
the cgroups of the lab's first node, so that on a busy machine it gets the same share of the CPU as our helpers.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from mig.criu import layout
from mig.errors import MigError
from mig.kernel import libc
from omtools.bench import tcp
from omtools.bench.samples import CRIU, RUNC
from omtools.bench.target import Diary
from omtools.moslab import lab as labs
from omtools.moslab import limits

WORK = Path("/run/mig-bench")
_NAME = "mig-bench"
OWN_WORLD = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
"""Namespaces in which everything dies with the first process."""
COMMON = ["--shell-job", "--manage-cgroups=ignore", "--network-lock", "skip"]
"""Arguments of every dump and restore by CRIU."""


def command(program: Path, lab: str) -> list[str]:
    """How to start this module."""
    return [*OWN_WORLD, sys.executable, "-m", "omtools.bench.peers", str(program), lab]


def _run(argv: list[Any], log: Path | None = None) -> None:
    """Run a tool to its end; raises :class:`MigError` with its words or its log's errors."""
    done = subprocess.run([str(a) for a in argv], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise MigError(f"{argv[0]} failed: {done.stderr.strip()[-300:]}", reasons=errors(log) if log else [])


def errors(log: Path) -> list[str]:
    """The first errors in a log of CRIU."""
    text = log.read_text(errors="replace") if log.exists() else ""
    return [line for line in text.splitlines() if "Error" in line][:3]


def _launch(argv: list[Any]) -> None:
    """Start a tool whose descendants go on: their descriptors are /dev/null's, which is wherever they are restored."""
    with open(os.devnull, "r+b") as null:
        done = subprocess.run([str(a) for a in argv], stdin=null, stdout=null, stderr=null)
    if done.returncode:
        raise MigError(f"{argv[0]} failed with status {done.returncode}")


class _Clock:
    """Times of the parts of one run."""

    def __init__(self) -> None:
        self.steps: dict[str, float] = {}
        self._last = self._began = time.monotonic()

    def done(self, step: str) -> None:
        now = time.monotonic()
        self.steps[step] = (now - self._last) * 1e3
        self._last = now

    @property
    def total(self) -> float:
        return (self._last - self._began) * 1e3


def launch(program: Path, mib: int) -> subprocess.Popen[bytes]:
    """Start a target that writes to ``WORK/diary``."""
    with open(os.devnull, "r+b") as null:
        argv = [str(program), str(mib), str(WORK / "diary")]
        return subprocess.Popen(argv, stdin=null, stdout=null, stderr=null, start_new_session=True, cwd="/")


def _criu(program: Path, mib: int, images: list[Path]) -> tuple[Diary, _Clock]:
    first, second = images
    process = launch(program, mib)
    diary = Diary(WORK / "diary", lambda: os.kill(process.pid, signal.SIGUSR1))
    diary.wait_ready()
    diary.longest()
    clock = _Clock()
    _run([*layout.command(), "dump", "-t", process.pid, "-D", first, "-o", "dump.log", *COMMON], first / "dump.log")
    process.wait()
    clock.done("dump")
    tcp.copy(first, second)
    clock.done("copy")
    _launch([*layout.command(), "restore", "-d", "-D", second, "-o", "restore.log", *COMMON])
    clock.done("restore")
    return diary, clock


def _runc(program: Path, mib: int, images: list[Path]) -> tuple[Diary, _Clock]:
    first, second = images
    bundle = WORK / "bundle"
    root = bundle / "rootfs"
    root.mkdir(parents=True)
    shutil.copy(program, root / "target")
    _write_bundle(bundle, ["/target", str(mib), "/diary"])
    runc = ["runc", "--root", WORK / "runc"]
    _launch([*runc, "run", "--detach", "--bundle", bundle, _NAME])
    diary = Diary(root / "diary", lambda: _run([*runc, "kill", _NAME, "USR1"]))
    diary.wait_ready()
    diary.longest()
    clock = _Clock()
    _run([*runc, "checkpoint", "--image-path", first, "--work-path", WORK, _NAME], WORK / "dump.log")
    clock.done("dump")
    tcp.copy(first, second)
    clock.done("copy")
    _launch([*runc, "restore", "--detach", "--bundle", bundle, "--image-path", second, "--work-path", WORK, _NAME])
    clock.done("restore")
    return diary, clock


def _write_bundle(bundle: Path, argv: list[str]) -> None:
    """runc's own default container, but in the machine's network namespace, without a terminal, and writable."""
    subprocess.run(["runc", "spec", "--bundle", bundle], check=True)
    path = bundle / "config.json"
    config = json.loads(path.read_text())
    config["process"] |= {"terminal": False, "args": argv}
    config["root"]["readonly"] = False
    # with a network namespace of its own CRIU wants iptables, which need not be there
    config["linux"]["namespaces"] = [n for n in config["linux"]["namespaces"] if n["type"] not in ("network", "cgroup")]
    config["linux"]["cgroupsPath"] = f"{_own_group()}/{_NAME}"
    config["mounts"] = [m for m in config["mounts"] if m["type"] not in ("cgroup", "sysfs")]
    path.write_text(json.dumps(config))


def _own_group() -> str:
    """This process's cgroup of the hierarchy that has the cpu controller, as a path in it."""
    groups = {f[1]: f[2] for line in Path("/proc/self/cgroup").read_text().splitlines() if (f := line.split(":", 2))}
    return next((path for names, path in groups.items() if "cpu" in names.split(",")), groups.get("", ""))


def _end_all() -> None:
    """Kill every process of this namespace but this one, and reap them."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def measure(program: Path, peer: str, mib: int) -> dict[str, Any]:
    """One run from a new process to its end: ``felt``, ``total``, ``steps``, or ``error``."""
    images = [WORK / "images", WORK / "copy"]
    for d in images:
        d.mkdir(parents=True)
    try:
        diary, clock = (_criu if peer == CRIU else _runc)(program, mib, images)
        return {"felt": diary.longest(), "total": clock.total, "steps": clock.steps}
    except MigError as e:
        return {"error": "; ".join(e.lines())}
    finally:
        if peer == RUNC:
            subprocess.run(["runc", "--root", WORK / "runc", "delete", "--force", _NAME], capture_output=True)
        _end_all()
        shutil.rmtree(WORK)


def settle(lab: labs.Lab) -> None:
    """Make this process, the first of its namespaces, ready to measure: the cgroups of a node, a private /run, CRIU on PATH."""
    limits.join_node(lab, lab.node("n1"))
    libc.mount("none", "/", None, libc.MS_REC | libc.MS_PRIVATE)
    libc.mount("tmpfs", "/run", "tmpfs", libc.MS_NOSUID | libc.MS_NODEV, "mode=755,size=100%")
    tools = Path("/run/bin")
    tools.mkdir()
    wrapper = tools / "criu"  # runc finds CRIU on PATH
    wrapper.write_text("#!/bin/sh\nexec " + " ".join(layout.command()) + ' "$@"\n')
    wrapper.chmod(0o755)
    os.environ["PATH"] = f"{tools}:{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    subprocess.run([*layout.command(), "check"], capture_output=True)


def main() -> None:
    """Serve until the input ends."""
    program = Path(sys.argv[1])
    settle(labs.load(sys.argv[2]))
    for line in sys.stdin:
        m = json.loads(line)
        print(json.dumps(measure(program, m["peer"], m["mib"])), flush=True)


if __name__ == "__main__":
    main()
