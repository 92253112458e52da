"""The journal of a conversion, and what becomes of a process whose converter died half-way.

The journal holds what the converter alone knew: every thread's registers and signal mask, and what was made inside of the process.
The process itself is parked meanwhile (see :mod:`mig.deputy.convert`), or it is a deputy already.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mig import paths
from mig.deputy.convert import MARK, Conversion, Deputy, DeputyError, nothing, retake_link
from mig.kernel import procfs
from mig.kernel.ptrace import NR, Tracee, TraceeDied, user_regs_struct

EXEC_TIMEOUT = 20.0
"""Seconds: the exec frees the old memory, 0.1 s a GiB."""
JOURNALS = paths.RUN / "conversions"


def journal_path(pid: int) -> Path:
    """Where the conversion of ``pid`` is journalled."""
    return JOURNALS / f"{pid}.json"


class Journal:
    """Callable for :func:`mig.deputy.convert.convert`: notes the state of the conversion, replacing the file as a whole."""

    def __init__(self, pid: int) -> None:
        self.path = journal_path(pid)
        self.start = procfs.stat(pid).start
        self.descriptors = sorted(map(int, os.listdir(f"/proc/{pid}/fd")))
        JOURNALS.mkdir(mode=0o700, parents=True, exist_ok=True)

    def __call__(self, job: Conversion) -> None:
        text = json.dumps(
            {
                "pid": job.pid, "start": self.start, "stopped": job.stopped, "insn": job.insn, "descriptors": self.descriptors,
                "threads": {t.tid: [bytes(t.saved).hex(), t.mask] for t in job.threads.values()}, "cloexec": sorted(job.cloexec),
                "children": job.children,
                "opened": job.opened, "areas": job.areas, "tid_state": job.tid_state, "holder": job.holder,
                "ready": job.ready, "covered": None if job.covered is None else job.covered.hex(),
            }
        )  # fmt: skip
        new = self.path.with_suffix(".new")
        new.write_text(text)
        new.rename(self.path)


def repair(pid: int, thaw: Callable[[], None] = nothing, freeze: Callable[[], None] = nothing) -> Deputy:
    """Finish what a dead converter began: returns the deputy where the exec had happened, else rolls back.

    The process may be frozen or not; ``thaw`` and ``freeze`` are called as in :func:`mig.deputy.convert.convert`.

    Raises:
        DeputyError: rolled back: the process is as it was before the conversion (frozen, with ``freeze``); or it is lost.
    """
    path = journal_path(pid)
    try:
        note: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        raise DeputyError(f"the converter of process {pid} died before it changed anything") from None
    try:
        if procfs.state(pid) in (None, "Z") or procfs.stat(pid).start != note["start"]:
            raise DeputyError(f"process {pid} ended while it was made a deputy", rolled_back=False)
        if note["ready"]:
            thaw()
            _end_of_exec(pid)
        if is_deputy(pid):
            peer = note["opened"][1]
            return Deputy(pid, retake_link(pid, peer), peer, note["holder"])
        _roll_back(note, thaw, freeze)
    except (ProcessLookupError, TraceeDied) as e:
        raise DeputyError(f"process {pid} ended while it was made a deputy: {e}", rolled_back=False) from e
    finally:
        path.unlink(missing_ok=True)
    raise DeputyError(f"the converter of process {pid} died; the process is as it was before")


def is_deputy(pid: int) -> bool:
    """Whether its program is a deputy's.  Raises ``ProcessLookupError``."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().startswith(MARK)
    except FileNotFoundError:
        raise ProcessLookupError(errno.ESRCH, f"no process {pid}") from None


def _end_of_exec(pid: int) -> None:
    """Wait until the leader is parked or a deputy: its exec may be under way, and go on without a tracer."""
    end = time.monotonic() + EXEC_TIMEOUT
    while not is_deputy(pid) and ((call := procfs.syscall(pid, pid)) is None or call.nr != NR["pause"]):
        if time.monotonic() > end:
            raise DeputyError(f"process {pid} is neither parked nor a deputy", rolled_back=False)
        time.sleep(0.0005)


def _roll_back(note: dict[str, Any], thaw: Callable[[], None], freeze: Callable[[], None]) -> None:
    pid = int(note["pid"])
    job = Conversion(pid)
    job.stopped, job.insn = note["stopped"], note["insn"]
    job.cloexec = set(note["cloexec"])
    job.areas = [(int(a), int(n)) for a, n in note["areas"]]
    job.covered = None if note["covered"] is None else bytes.fromhex(note["covered"])
    job.tid_state, job.holder = tuple(note["tid_state"]) if note["tid_state"] else None, note["holder"]
    for key, (regs, mask) in note["threads"].items():
        t = job.threads[int(key)] = Tracee(int(key))
        t.stop()
        t.saved, t.mask, t.insn = user_regs_struct.from_buffer_copy(bytes.fromhex(regs)), mask, job.insn
    thaw()
    # whatever the process has now and had not before is ours: no thread of it has run meanwhile
    job.adopt(set(note["descriptors"]), set(note["children"]))
    job.roll_back(freeze)
