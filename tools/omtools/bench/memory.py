"""Memory over a gigabit link, and what tracking its writes costs: measurements beside the table of moves."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mig.errors import MigError
from mig.memory.copier import CannotTrack
from mig.memory.hide import read_areas
from mig.memory.precopy import Process
from mig.memory.rounds import Policy
from mig.memory.tracker import WriteTracker
from omtools.bench import lab, lazy, table
from omtools.bench.samples import HERE_TO_N2, LAZY
from omtools.bench.target import Diary

GIGABIT = 125e6
"""Bytes a second."""
RANDOM, HEAP = "random", "Python heap"
HEAP_PROGRAM = Path(__file__).with_name("heap.py")


@dataclass(frozen=True)
class Link:
    """One move of ``mib`` over 1 Gbit/s: pause felt, total until the answer, until all memory had arrived (ms; 0: not waited for), the work
    of the first second after the answer, and of one before the order."""

    kind: str
    mib: int
    round: int
    felt: float
    total: float
    resident: int
    first_second: int
    before: int
    all_ms: float = 0.0

    @property
    def of_line(self) -> float:
        """Time until all had arrived, in times that the resident memory takes at the line's rate."""
        return self.all_ms / 1e3 / (self.resident / GIGABIT)


def over_gigabit(program: Path, plan: Sequence[tuple[str, int, int]], say: Callable[[str], None], failures: list[str]) -> list[Link]:
    """``plan``: kind, MiB and rounds."""
    out = []
    with lab.up("--cpus", str(len(os.sched_getaffinity(0))), "--link", "1gbit") as nodes:
        for kind, mib, rounds in plan:
            for number in range(rounds):
                say(f"1 Gbit/s, {kind}, {mib} MiB, round {number + 1} of {rounds}")
                try:
                    with lab.Guest(nodes, program if kind == RANDOM else HEAP_PROGRAM, mib, with_="" if kind == RANDOM else "python3") as g:
                        out.append(_one(g, kind, mib, number))
                    if kind == RANDOM:
                        out.append(Link(kind=LAZY, mib=mib, round=number, **lazy.measure(program, nodes, mib)))
                except MigError as e:
                    failures.append(f"{kind}, {mib} MiB over 1 Gbit/s: {'; '.join(e.lines())}")
                    say(failures[-1])
    return out


def _one(g: lab.Guest, kind: str, mib: int, number: int) -> Link:
    start = g.work()
    time.sleep(1.0)
    before = g.work() - start
    resident = g.resident()
    began = time.time()
    moved = g.move(HERE_TO_N2, "n2", number)
    at = g.work()
    time.sleep(1.0)
    first = g.work() - at
    return Link(kind, mib, number, moved.felt, moved.total, resident, first, before, (g.wait_for_all(began) - began) * 1e3)


def first_second(found: Sequence[Link], mib: int) -> list[float]:
    """Our work in the first second after arrival, in times that of CRIU's lazy pages in the same round."""
    ours = {x.round: x.first_second for x in found if x.kind == RANDOM and x.mib == mib}
    return [ours[x.round] / max(x.first_second, 1) for x in found if x.kind == LAZY and x.mib == mib and x.round in ours]


def link_table(found: Sequence[Link]) -> str:
    """Medians by kind and size; "" without any."""
    if not found:
        return ""
    body = []
    for kind, mib in dict.fromkeys((x.kind, x.mib) for x in found):
        mine = [x for x in found if (x.kind, x.mib) == (kind, mib)]

        def median(of: Callable[[Link], float], mine: list[Link] = mine) -> float:
            return statistics.median(map(of, mine))

        felt, of_line = sorted(x.felt for x in mine), median(lambda x: x.of_line)
        body.append([
            kind, f"{mib}", table.ms(statistics.median(felt)), f"{table.ms(felt[0])}-{table.ms(felt[-1])}",
            table.ms(median(lambda x: x.total)), table.ms(median(lambda x: x.all_ms)), f"{of_line:.2f}" if of_line else "",
            f"{median(lambda x: x.first_second / max(x.before, 1)):.3f}", f"{len(mine)}",
        ])  # fmt: skip
    times = {mib: first_second(found, mib) for mib in dict.fromkeys(x.mib for x in found)}
    beside = [f"{mib} MiB: {statistics.median(t):.1f} times ({min(t):.1f}-{max(t):.1f})" for mib, t in times.items() if t]
    more = f"\n\nWork in the first second, beside {LAZY}: {', '.join(beside)}." if beside else ""
    head = ["1 Gbit/s", "MiB", "pause felt", "from-to", "total", "all here", "x line rate", "first second", "runs"]
    return table.table(head, body) + more


class _Nowhere:
    """A sink that drops what it gets."""

    def store(self, index: int, addr: int, contents: memoryview) -> int:
        """Nothing is sent."""
        return len(contents)


def slowdown(program: Path, mib: int, turns: int, seconds: float = 1.0) -> list[float]:
    """Work done while tracked (no scan running) as a part of that done untracked, in pairs of neighbouring windows.

    Raises :class:`MigError` where writes cannot be tracked.
    """
    with tempfile.TemporaryDirectory() as d:
        process = subprocess.Popen([program, str(mib), f"{d}/diary"], stdin=subprocess.DEVNULL)
        try:
            diary = Diary(Path(d) / "diary", lambda: os.kill(process.pid, signal.SIGUSR1))
            diary.wait_ready()

            def rate() -> float:
                diary.longest()
                before, began = diary.steps(), time.monotonic()
                time.sleep(seconds)
                diary.longest()
                return (diary.steps() - before) / (time.monotonic() - began)

            out = []
            for _ in range(turns):
                plain = rate()
                ranges = [(a.mapping.start, a.mapping.end) for a in read_areas(process.pid) if a.hidden]
                tracker = WriteTracker([Process(0, process.pid, ranges)], _Nowhere(), Policy(max_rounds=1))
                try:
                    tracker.rounds()  # everything is protected once
                    time.sleep(0.2)  # the hot set is written once
                    out.append(rate() / plain)
                finally:
                    tracker.close()
            return out
        except CannotTrack as e:
            raise MigError(f"writes cannot be tracked: {e.strerror}") from e
        finally:
            process.kill()
            process.wait()


if __name__ == "__main__":
    print([round(x, 3) for x in slowdown(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))])
