"""A lab of our own, and moves in it."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from mig.errors import MigError
from mig.kernel import procfs
from mig.kernel.cgroup import Cgroup
from omtools.bench.samples import HERE_TO_N2, HOME, ONWARD, Sample
from omtools.bench.target import START, Diary
from omtools.client import Client
from omtools.moslab import enter, power, ready
from omtools.moslab import lab as labs

_ROUTE = ((HERE_TO_N2, "n2"), (ONWARD, "n3"), (HOME, "home"))
_STANDS_STILL = "freeze"
_LOG_LINES = 8
ALL = 120.0
"""Seconds for all memory to arrive: 9 for a GiB at 1 Gbit/s."""


def moslab(name: str, *args: str) -> None:
    """Run moslab for lab ``name``; raises :class:`MigError` with its words."""
    script = str(Path(sys.prefix) / "bin" / "moslab")
    done = subprocess.run([script, "--lab", name, *args], capture_output=True, text=True)
    if done.returncode:
        raise MigError(f"moslab {' '.join(args)}: {done.stderr.strip()}")


@contextlib.contextmanager
def up(*args: str) -> Iterator[labs.Lab]:
    """Three nodes for as long as the context lasts; nothing is left of them."""
    name = f"bench-{os.getpid()}-{secrets.token_hex(2)}"
    try:
        moslab(name, "up", "3", "--set", "auto=none", *args)
        yield labs.load(name)
    finally:
        power.down(labs.Lab(name))
        _remove_groups(name)


def _remove_groups(name: str) -> None:
    """A container in a node's cpu group has groups of that path in all v1 hierarchies; runc removes only the last directory of each."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split(" ")
        if kind == "cgroup" and (group := Cgroup(f"{where}/moslab-{name}")).exists():
            group.remove()


class Guest:
    """A target that was started in n1 and that we move; use it as a context manager."""

    def __init__(self, lab: labs.Lab, program: Path, mib: int, *, with_: str = "") -> None:
        """``with_``: the program that runs ``program``, an interpreter."""
        self.lab, self.mib = lab, mib
        node = lab.node("n1")
        tree = ready.tree(lab, node)
        path = f"/var/tmp/bench-{secrets.token_hex(4)}"
        self.pid = enter.spawn(lab, node, [*([with_] if with_ else []), str(program), str(mib), path])
        here = procfs.host_pid(procfs.tree(int(lab.pid_file(node).read_text())), self.pid)
        self._pidfd = os.pidfd_open(here)  # its deputy is the same process
        self._diary = Diary(tree / path[1:], lambda: signal.pidfd_send_signal(self._pidfd, signal.SIGUSR1))
        self._client = Client(tree / ready.CONTROL)

    def __enter__(self) -> Guest:
        self._diary.wait_ready()
        return self

    def __exit__(self, *_: object) -> None:
        """Kill it, and wait until every helper of it is gone: the next run shall not share the machine with them."""
        try:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            deadline = time.monotonic() + START
            while any(g["pid"] == self.pid for g in self._client.call("guests", all=True)["guests"]) and time.monotonic() < deadline:
                time.sleep(0.02)
        finally:
            os.close(self._pidfd)
            self._client.close()

    def move(self, what: str, to: str, number: int) -> Sample:
        """Move it, in round ``number``.  Raises :class:`MigError` when that fails."""
        self._diary.longest()
        began = time.monotonic()
        at: list[tuple[str, float]] = []
        for item in self._client.stream("migrate", pid=self.pid, to=to):
            assert item is not None  # no tick was asked for
            now = (time.monotonic() - began) * 1e3
            if item.get("more"):
                at.append((str(item.get("step")), now))
            else:
                told = float(item["result"]["pause_ms"])
                ends = [t for _, t in at[1:]] + [now]
                steps = {"start": at[0][1]} | {step: end - t for (step, t), end in zip(at, ends, strict=True)}
                prepare = next(t for step, t in at if step == _STANDS_STILL)
                return Sample(what, self.mib, number, self._diary.longest(), now, told, prepare, steps)
        raise MigError(f"the move to {to} has no answer")

    def wait_for_all(self, since: float) -> float:
        """Wait until all of its memory has arrived; returns when that was (``time.time``), by the event of it: this may be asked later.

        ``since``: when it was ordered to move.  Raises :class:`MigError`.
        """
        deadline = time.monotonic() + ALL
        while time.monotonic() < deadline:
            for e in self._client.call("events", since=since)["events"]:
                if e["kind"] == "memory" and e["pid"] == self.pid:
                    return float(e["t"])
            time.sleep(0.02)
        raise MigError(f"the memory of process {self.pid} has not arrived in {ALL:g} s")

    def resident(self) -> int:
        """Bytes of memory that it has, where it is at home."""
        here = procfs.host_pid(procfs.tree(int(self.lab.pid_file(self.lab.node("n1")).read_text())), self.pid)
        return procfs.status(here).rss

    def work(self) -> int:
        """Steps done so far."""
        self._diary.longest()
        return self._diary.steps()


def journey(lab: labs.Lab, program: Path, mib: int, number: int) -> list[Sample]:
    """A new process goes from home to n2, to n3 and home again."""
    with Guest(lab, program, mib) as guest:
        try:
            return [guest.move(what, to, number) for what, to in _ROUTE]
        except MigError as e:
            e.reasons = [*e.reasons, *_last_words(lab)]
            raise


def _last_words(lab: labs.Lab) -> list[str]:
    """The ends of the logs of all agents and keepers, the newest log of each node."""
    words = []
    for node in lab.nodes:
        logs = sorted((ready.tree(lab, node) / "run/mig/log").glob("*.log"), key=lambda p: p.stat().st_mtime)
        words += [f"{node.name}: {line}" for p in logs[-1:] for line in p.read_text(errors="replace").splitlines()[-_LOG_LINES:]]
    return words
