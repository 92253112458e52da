"""``python -m omtools.bench [--quick]``: measure, print tables, write ``out/bench.json``."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mig.errors import MigError, NotPermitted
from omtools.bench import lab, machine, memory, peers, spread, starts, table, target
from omtools.bench.samples import PEERS, RUNC, Sample, rows
from omtools.moslab import lab as labs

OUT = Path(__file__).parents[3] / "out"
FULL = {4: 7, 64: 7, 1024: 3, 4096: 3}
"""Rounds by MiB."""
QUICK = {4: 1}
LINK = ((memory.RANDOM, 64, 3), (memory.RANDOM, 1024, 3), (memory.HEAP, 1024, 3))
LINK_QUICK = ((memory.RANDOM, 16, 1), (memory.HEAP, 16, 1))
TRACKED = (256, 7)
TRACKED_QUICK = (16, 1)


class Peers:
    """The process that measures CRIU and runc."""

    def __init__(self, program: Path, nodes: labs.Lab) -> None:
        self._process = subprocess.Popen(peers.command(program, nodes.name), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def measure(self, peer: str, mib: int, number: int) -> Sample:
        """One run; raises :class:`MigError`."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"peer": peer, "mib": mib}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        m: dict[str, Any] = json.loads(line) if line else {"error": "the process that measures it has ended"}
        if "error" in m:
            raise MigError(f"{peer} of {mib} MiB: {m['error']}")
        return Sample(peer, mib, number, m["felt"], m["total"], steps=m["steps"])

    def close(self) -> None:
        """End it with all that it has started."""
        self._process.communicate()


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """A directory that nodes see as well: they show the file system on which the project lies."""
    OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=OUT) as name:
        os.chmod(name, 0o755)
        yield Path(name)


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def _fitting(plan: dict[int, int]) -> dict[int, int]:
    """The sizes for which there is memory: the process twice and its images twice stand beside each other for a moment."""
    free = machine.available()
    for mib in [m for m in plan if (m << 20) * 5 > free]:
        _say(f"{mib} MiB is left out: {free / machine.GIB:.1f} GiB of memory are free, five times its size are needed")
    return {mib: rounds for mib, rounds in plan.items() if (mib << 20) * 5 <= free}


def measure_moves(plan: dict[int, int], samples: list[Sample], failures: list[str]) -> None:
    """All moves, ours and the peers', in rounds: what disturbs the machine disturbs all of a round."""
    cores = len(os.sched_getaffinity(0))
    with _scratch() as scratch, contextlib.ExitStack() as stack:
        program = target.build(scratch)
        # nodes without a quota: the peers have none either
        nodes = stack.enter_context(lab.up("--cpus", str(cores)))
        others = Peers(program, nodes)
        stack.callback(others.close)
        there = [p for p in PEERS if p != RUNC or machine.describe()["runc"]]
        if RUNC not in there:
            _say("runc is not installed, so it is left out; `make bench` installs it")
        for mib, rounds in plan.items():
            for number in range(rounds):
                _say(f"{mib} MiB, round {number + 1} of {rounds}")
                todo = ["", *there]
                for who in todo[number % len(todo) :] + todo[: number % len(todo)]:
                    try:
                        if who:
                            samples.append(others.measure(who, mib, number))
                        else:
                            samples += lab.journey(nodes, program, mib, number)
                    except MigError as e:
                        failures.append("; ".join(e.lines()))
                        _say(failures[-1])


def measure_starts(quick: bool) -> dict[str, list[float]]:
    """Starts of a lab and of programs, in milliseconds."""
    times: dict[str, list[float]] = {}
    for _ in range(1 if quick else 5):
        for what, took in starts.lab_times().items():
            times.setdefault(what, []).append(took)
    with lab.up() as nodes:
        times |= starts.program_times(nodes, 3 if quick else 15)
    return times


def measure_memory(quick: bool, failures: list[str]) -> tuple[list[memory.Link], list[float]]:
    """Memory over a gigabit link; work done while tracked, as a part of that done untracked."""
    with _scratch() as scratch:
        program = target.build(scratch)
        links = memory.over_gigabit(program, LINK_QUICK if quick else LINK, _say, failures)
        _say("what tracking costs")
        try:
            return links, memory.slowdown(program, *(TRACKED_QUICK if quick else TRACKED))
        except MigError as e:
            failures.append("; ".join(e.lines()))
            return links, []


def measure_spread(quick: bool, failures: list[str]) -> list[spread.Spread]:
    """Ten loops that start on one of three nodes."""
    _say("ten loops are spread over three nodes")
    try:
        return [spread.measure(quick=quick) for _ in range(1 if quick else 3)]
    except MigError as e:
        failures.append("; ".join(e.lines()))
        return []


def _tracked(found: list[float]) -> str:
    if not found:
        return ""
    return f"Work done while writes are tracked: {statistics.median(found):.2f} of that done untracked ({min(found):.2f}-{max(found):.2f})."


def _report(
    result: dict[str, Any], samples: list[Sample], times: dict[str, list[float]], links: list[memory.Link], tracked: list[float],
    spreads: list[spread.Spread],
) -> str:  # fmt: skip
    m = result["machine"]
    head = f"{m['date']}, {m['processor']}, {m['memory']}, kernel {m['kernel']}, CRIU {m['criu']}, runc {m['runc'] or '-'}"
    parts = [f"{head}\nload {result['load_before']} before, {result['load_after']} after; medians, milliseconds"]
    if samples:
        parts += [table.moves(samples), table.ratios(samples), table.steps(samples)]
    parts += [memory.link_table(links), _tracked(tracked)]
    if times:
        body = [[what, table.ms(statistics.median(t)), f"{table.ms(min(t))}-{table.ms(max(t))}", str(len(t))] for what, t in times.items()]
        parts.append(table.table(["start", "time", "from-to", "runs"], body))
    if spreads:
        body = [
            [f"run {i + 1}", spread.seconds(s.spread), f"{s.total:.1f}", f"{s.total / s.ideal:.2f}", str(s.moves)]
            for i, s in enumerate(spreads)
        ]
        parts.append(table.table(["ten loops, three nodes", "spread after s", "ended after s", "to the ideal", "moves"], body))
    return "\n\n".join(p for p in parts if p)


def run(quick: bool, out: Path) -> int:
    """Measure everything; 0, or 4 when something could not be measured."""
    if os.geteuid() != 0:
        raise NotPermitted("the benchmark must be run as root", hint="it makes labs and moves processes")
    began = time.monotonic()
    result: dict[str, Any] = {"machine": machine.describe(), "quick": quick, "load_before": machine.load()}
    samples: list[Sample] = []
    failures: list[str] = []
    measure_moves(QUICK if quick else _fitting(FULL), samples, failures)
    links, tracked = measure_memory(quick, failures)
    _say("starts")
    times = measure_starts(quick)
    spreads = measure_spread(quick, failures)
    result |= {"load_after": machine.load(), "seconds": round(time.monotonic() - began, 1), "failures": failures, "starts": times}
    result["rows"] = [dataclasses.asdict(r) for r in rows(samples)]
    result |= {"links": [dataclasses.asdict(x) for x in links], "tracked": tracked, "spread": [dataclasses.asdict(x) for x in spreads]}
    result["samples"] = [dataclasses.asdict(s) for s in samples]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(_report(result, samples, times, links, tracked, spreads))
    print(f"\n{result['seconds']:.0f} s; all samples: {out}")
    if failures:
        raise MigError(f"{len(failures)} measurement(s) failed", reasons=failures)
    return 0


def main() -> int:
    """The command line."""
    p = argparse.ArgumentParser(prog="python -m omtools.bench", description=__doc__)
    p.add_argument("--quick", action="store_true", help="one round of 4 MiB: does it work?")
    p.add_argument("--json", type=Path, default=OUT / "bench.json", metavar="FILE", help="where all samples go (default: %(default)s)")
    a = p.parse_args()
    signal.signal(signal.SIGTERM, lambda n, _: sys.exit(128 + n))  # what was made goes again
    try:
        return run(a.quick, a.json)
    except MigError as e:
        print("\n".join(f"bench: {line}" for line in e.lines()), file=sys.stderr)
        return e.exit_code
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
