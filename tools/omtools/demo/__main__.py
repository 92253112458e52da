"""``python -m omtools.demo``: the demonstration from nothing to nothing; exit status 0 if all that it claims is true."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from mig.errors import MigError, NotPermitted
from omtools import output
from omtools.demo import jobs, show
from omtools.demo.estimate import Work, shared_cpu
from omtools.demo.story import HOME, Run, Story
from omtools.moslab import init, ready
from omtools.moslab import lab as labs

MOSLAB = Path(sys.executable).with_name("moslab")
NODES = 3
MAX_CPUS = 4
"""Of a larger machine only so many CPUs are used: the pool shall be loaded by six threads."""

INTRO = """\
openMosix in userspace: a pool of three small machines is made inside this one. All work is started on the first, n1. The pool finds that
n1 is busy and moves running programs, unasked and while they run, to n2 and n3. The programs do not notice: their terminal, files,
parent, exit status stay those of n1. At the end everything is compared with runs that never moved."""


def main() -> int:
    """Entry point."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda n, _: sys.exit(128 + n))
    return output.run(_demo, "demo")


def _demo() -> int:
    if os.geteuid() != 0:
        raise NotPermitted("the demonstration must be run as root", hint="it makes containers, and moves processes between them")
    began = time.monotonic()
    show.paragraph(INTRO)
    # set before anything is started: the lab divides the CPUs that it may use among its nodes
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:MAX_CPUS])
    cpus = 0.9 * len(os.sched_getaffinity(0))
    busy = os.getloadavg()[0] > 0.5 * (os.cpu_count() or 1)
    if busy:
        show.say()
        show.paragraph(f"Note: this machine is busy with other work (load {os.getloadavg()[0]:.1f}): all lasts longer, pauses too.")
    with _directory() as directory:
        work = _prepare(directory, cpus)
        with _lab() as lab:
            good = False
            try:
                story = Story(lab, work, directory)
                story.play()
                good = _judge(story, cpus / NODES, busy)
            except KeyboardInterrupt:
                show.say("\nInterrupted; the lab is taken down.")
                raise
            finally:
                if not good and not isinstance(sys.exception(), KeyboardInterrupt | SystemExit):
                    _keep_logs(lab)
    show.say(f"\nThe lab is gone again.  This took {time.monotonic() - began:.0f} s.")
    return 0 if good else 1


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="mosdemo-"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def _prepare(directory: Path, cpus: float) -> list[jobs.Job]:
    """Jobs with known results."""
    show.title("First the same jobs without moves, for comparison")
    began = time.monotonic()
    work = jobs.make(directory, cpus)
    show.say(f"  sized for this machine in {time.monotonic() - began:.0f} s; now all run at once, outside of any lab:")
    jobs.run_unmoved(work, directory, lambda job: show.say(f"  {job.name:<5} {job.cpu_s:5.1f} s of CPU time"))
    return work


@contextlib.contextmanager
def _lab() -> Iterator[labs.Lab]:
    """The pool; it is gone afterwards, whatever happens."""
    name = f"demo-{os.getpid()}"
    show.title(f"moslab --lab {name} up {NODES} --set auto=all")
    try:
        _moslab(name, "up", str(NODES), "--set", "auto=all")
        lab = labs.load(name)
        for node in lab.nodes:
            show.say(f"  {node.name}  {node.addr:<15}  {node.quota:.1f} CPUs, its own disk, processes and network")
        yield lab
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        _moslab(name, "down")


def _moslab(name: str, *words: str) -> None:
    # a session of its own: Ctrl-C is for us, who then remove what has been made
    status = subprocess.run([MOSLAB, "--lab", name, *words], stdin=subprocess.DEVNULL, start_new_session=True).returncode
    if status:
        raise MigError(f"moslab --lab {name} {' '.join(words)} ended with status {status}")


def _keep_logs(lab: labs.Lab) -> None:
    """Copy what the daemons, agents and keepers wrote out of the lab, for whoever looks for the fault."""
    kept = Path(tempfile.mkdtemp(prefix="mosdemo-logs-"))
    for node in lab.nodes:
        root = ready.tree(lab, node)
        shutil.copytree(root / "run/mig/log", kept / node.name)
        shutil.copy(root / init.STATE[1:] / "omdiscd.log", kept / node.name)
    show.say(f"The logs of all nodes are kept in {kept}")


def _judge(story: Story, cpus: float, busy: bool) -> bool:
    """The summary; True if nothing differs and the balancer has moved something."""
    alone = shared_cpu([Work(r.began, r.job.cpu_s, r.job.threads) for r in story.runs], cpus)
    wrong = {r.job.name: story.wrong(r) for r in story.runs}
    show.title("Summary")
    show.say("        moves by                    longest  same as    exit            on n1")
    show.say("job     pool hand  ran on             pause  unmoved  status    took  alone*")
    for run, estimate in zip(story.runs, alone, strict=True):
        show.say(_row(run, estimate - run.began, same=not wrong[run.job.name]))
    last = max(r.ended for r in story.runs)
    show.say(f"{'all':<52}{last:>10.0f} s{max(alone):>6.0f} s")
    show.paragraph(f"* estimated: the CPU time of the unmoved runs, shared fairly on the {cpus:.1f} CPUs of one node")
    if busy:
        show.paragraph("  The machine's other work has slowed the jobs down; the estimate knows nothing of it.")
    return _verdict(story, wrong)


def _row(run: Run, estimate: float, *, same: bool) -> str:
    by_hand = sum(m.by_hand for m in run.moves)
    pause = show.duration(max((m.pause_ms for m in run.moves), default=0)) if run.moves else "-"
    path = " ".join(run.path)
    return (
        f"{run.job.name:<6}{len(run.moves) - by_hand:>6}{by_hand:>5}  {path:<17}{pause:>7}  {'yes' if same else 'NO':<7}"
        f"{run.status!s:>8}{run.ended - run.began:>6.0f} s{estimate:>6.0f} s"
    )


def _verdict(story: Story, wrong: dict[str, list[str]]) -> bool:
    moves = [m for r in story.runs for m in r.moves]
    by_pool = sum(not m.by_hand for m in moves)
    show.say()
    for name, what in wrong.items():
        for text in what:
            show.say(f"WRONG: {name}: {text}")
    for run in story.runs:
        for m in run.failed:
            show.say(f"note: a move of {run.job.name} to {m.target} did not succeed ({m.outcome}), see above")
    if strays := story.strays():
        show.say(f"WRONG: {HOME} exists on {', '.join(strays)}, which never had these files")
    if not by_pool:
        show.say("WRONG: the balancer has moved nothing")
    ordered = any(m.by_hand for r in story.runs for m in (*r.moves, *r.failed))
    obeyed = any(m.by_hand for m in moves) or not ordered
    if not obeyed:
        show.say("WRONG: no move by hand succeeded")
    good = by_pool > 0 and obeyed and not strays and not any(wrong.values())
    if good:
        show.paragraph(
            f"The picture, the archive, the log, all output and every exit status are the same as without moves. {by_pool} moves were the "
            f"balancer's own, {len(moves) - by_pool} ordered by hand. n2 and n3 have no trace of the files: they stayed on n1."
        )
    return good


if __name__ == "__main__":
    sys.exit(main())
