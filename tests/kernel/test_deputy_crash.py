"""The converter itself dies half-way: nothing of the old program runs, and a second one puts it right."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from collections.abc import Callable

import pytest

from mig.deputy.convert import Conversion, Deputy, DeputyError, convert, read_code
from mig.deputy.helper import Helper
from mig.deputy.repair import Journal, journal_path, repair
from mig.kernel import procfs
from tests.kernel.deputy_lab import NANOSLEEP, SLEEPER, THREADS, Start, Target, agent, asleep, built, ended, slept, start, until

__all__ = ["built", "start"]

NOTES = 7
"""That a conversion with a holder makes."""


def convert_and_die(t: Target, step: str, *, hold: bool = False) -> None:
    """In a child of ours, which ends by SIGKILL right after this step; "unnoted N": instead of its N-th note."""

    def die(name: str) -> None:
        if name == step:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        try:
            write = Journal(t.pid)

            notes = itertools.count(1)

            def journal(job: Conversion) -> None:
                die(f"unnoted {next(notes)}")
                write(job)

            convert(t.pid, thaw=t.group.thaw, freeze=t.group.freeze, hold=hold, on_step=die, journal=journal)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    until(lambda: procfs.status(t.pid).tracer == 0, "the kernel lets go of it")


TIMES = 40
"""At which a helper is killed, 0.1 ms apart: a conversion takes 3 ms."""


def vdso(pid: int) -> bytes:
    """Where a converter makes its first calls."""
    m = next(m for m in procfs.maps(pid) if m.path == "[vdso]")
    return read_code(pid, m.start, m.size)


def test_a_conversion_makes_so_many_notes(start: Start) -> None:
    notes = 0

    def count(job: Conversion) -> None:
        nonlocal notes
        notes += 1

    t = start(SLEEPER)
    t.group.freeze()
    with agent(t.convert(hold=True, journal=count)) as a:
        a.exit(0)
    assert notes == NOTES and ended(t.process) == 0


@pytest.mark.parametrize("code", [NANOSLEEP, THREADS], ids=["sleep", "threads"])
@pytest.mark.parametrize(
    "step", ["caught", "mapped", "link", "binary", "descriptors", "held", "ready", *(f"unnoted {n}" for n in range(1, NOTES + 1))]
)
def test_parked_and_put_back(start: Start, step: str, code: str) -> None:
    t = start(code, "1")
    until(lambda: procfs.state(t.pid) == "S" and len(procfs.threads(t.pid)) == (5 if code is THREADS else 1), "at work")
    t.group.freeze()
    before, code_before = t.inner(), vdso(t.pid)
    convert_and_die(t, step, hold=True)

    def parked() -> bool:
        calls = [procfs.syscall(t.pid, x) for x in procfs.threads(t.pid)]
        return all(c is not None and c.nr == 34 for c in calls)

    if step in ("caught", "unnoted 1"):
        assert t.group.is_frozen()
    else:
        until(parked, "every thread sleeps in pause()")
    with pytest.raises(DeputyError, match="before it changed anything" if step == "unnoted 1" else "as it was before") as e:
        repair(t.pid, t.group.thaw, t.group.freeze)
    assert e.value.rolled_back and t.group.is_frozen() and t.inner() == before and not journal_path(t.pid).exists()
    assert vdso(t.pid) == code_before
    t.group.thaw()
    if code is NANOSLEEP:
        assert slept(t.line()) and ended(t.process) == 0
    else:
        used = procfs.stat(t.pid)
        until(lambda: procfs.stat(t.pid).utime > used.utime, "its threads work")


def test_death_right_after_the_exec_is_no_failure(start: Start) -> None:
    t = start(SLEEPER)
    t.group.freeze()
    child = os.fork()
    if not child:
        job = Conversion(t.pid, Journal(t.pid))
        job.catch()
        t.group.thaw()
        job.prepare(0, False, lambda pid: None, lambda step: None)
        job.exec()
        os._exit(0)
    os.waitpid(child, 0)
    with agent(repair(t.pid, t.group.thaw, t.group.freeze)) as a:
        a.next()  # its Hello, which nobody had read
        a.exit(8 << 8)
        assert ended(t.process) == 8


def test_a_journal_of_another_process_is_not_used(start: Start) -> None:
    t = start(SLEEPER)
    t.group.freeze()
    convert_and_die(t, "link")
    t.group.kill()
    t.process.wait(15)
    with pytest.raises(DeputyError) as e:
        repair(t.pid)
    assert not e.value.rolled_back and not journal_path(t.pid).exists()
    with pytest.raises(DeputyError):
        repair(t.pid)


def run_with_a_helper_killed(t: Target, when: Callable[[], object]) -> None:
    async def go() -> None:
        with Helper() as h:
            asking = asyncio.create_task(h.convert(t.pid, str(t.group.path)))
            while not when():
                await asyncio.sleep(0)
            os.kill(h.pid, signal.SIGKILL)
            deputy = await asking
            with agent(deputy) as a:
                a.exit(1 << 8)

    asyncio.run(go())


def test_a_helper_killed_in_the_middle_is_replaced_by_one_that_repairs(start: Start) -> None:
    # thousands of descriptors give us the time to hit it
    code = "import os,resource,time; resource.setrlimit(7, (4000, 4000)); x = [os.open('/dev/null', 0) for _ in range(3900)]\n"
    t = start(code + "print('up', flush=True); time.sleep(1000)")
    t.group.freeze()
    before = t.inner()
    with pytest.raises(DeputyError, match="as it was before") as e:
        run_with_a_helper_killed(t, lambda: journal_path(t.pid).exists() and not t.group.is_frozen())
    assert e.value.rolled_back and t.group.is_frozen() and t.inner() == before
    assert not journal_path(t.pid).exists()


async def convert_and_kill(t: Target, after: float) -> Deputy | None:
    """Kill the helper so many seconds after its first note: the deputy that came of it, or None where all is as before."""
    with Helper() as h:
        await asyncio.sleep(0.2)  # it is ready
        asking = asyncio.create_task(h.convert(t.pid, str(t.group.path)))
        while not (journal_path(t.pid).exists() or asking.done()):
            await asyncio.sleep(0)
        time.sleep(after)
        os.kill(h.pid, signal.SIGKILL)
        try:
            return await asking
        except DeputyError as e:
            assert e.rolled_back
            return None


def test_a_helper_killed_at_any_time(start: Start) -> None:
    """From right after the first note until it is done: it is a deputy, or it is as it was, and never lost."""
    t = start(SLEEPER)
    deputies = 0
    for n in range(TIMES):
        t.group.freeze()
        until(t.group.is_frozen, "frozen")
        before, code_before = t.inner(), vdso(t.pid)

        deputy = asyncio.run(convert_and_kill(t, n * 0.0001))
        if deputy is None:
            until(t.group.is_frozen, "frozen as before")
            assert t.inner() == before and vdso(t.pid) == code_before
            t.group.thaw()
        else:
            deputies += 1
            with agent(deputy) as a:
                a.exit(n << 8)
            assert ended(t.process) == n
            t = start(SLEEPER)
    assert 0 < deputies < TIMES


def test_a_helper_killed_before_it_began(start: Start) -> None:
    t = start(NANOSLEEP, "1")
    asleep(t)
    t.group.freeze()
    with pytest.raises(DeputyError, match="before it changed anything") as e:
        run_with_a_helper_killed(t, lambda: True)
    assert e.value.rolled_back and t.group.is_frozen()
    t.group.thaw()
    assert slept(t.line())
