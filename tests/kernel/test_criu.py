"""CRIU by RPC on a real process: dump, restore, its words when it fails."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mig.criu import layout
from mig.criu.log import CriuError
from mig.criu.session import Worker
from mig.kernel import procfs
from tests.kernel.criu_guest import Start, guests, until


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with guests(tmp_path) as begin:
        yield begin


def test_a_dumped_process_goes_on_where_it_was(start: Start) -> None:
    g = start("count")
    until(lambda: len(g.lines()) > 5, "some numbers")
    g.dump()
    g.end()
    at_dump = len(g.lines())
    order: list[str] = []
    g.restore(lambda name, pid: order.append(name))
    assert order == ["pre-restore", "post-restore", "pre-resume", "post-resume"]
    until(lambda: len(g.lines()) > at_dump + 3, "more numbers after the restore")
    numbers = g.lines()
    assert numbers == ["ready", *map(str, range(len(numbers) - 1))]  # memory and file position came along: nothing lost or doubled


def test_a_restored_process_stands_still_until_the_notification_is_answered(start: Start) -> None:
    g = start("count")
    g.dump()
    g.end()
    at_dump, seen = len(g.lines()), []

    def notify(name: str, pid: int) -> None:
        if name == "pre-resume":
            time.sleep(0.05)  # ten times the guest's tick
            seen.append((procfs.comm(g.pid), len(g.lines())))

    g.restore(notify)
    assert seen == [("criu_guest", at_dump)]
    until(lambda: len(g.lines()) > at_dump, "it runs after the answer")


def test_a_frozen_process_is_still_frozen_after_the_dump_and_can_be_thawed(start: Start) -> None:
    g = start("count")
    g.dump()
    assert g.group.is_frozen()
    assert procfs.stat(g.pid).state != "T"
    stands_at = g.lines()
    g.group.thaw()
    until(lambda: len(g.lines()) > len(stands_at), "numbers after the thaw")


def test_the_first_error_is_quoted_with_a_remedy(start: Start) -> None:
    g = start("inet")
    with pytest.raises(CriuError) as e:
        g.dump()
    assert "Connected TCP socket" in e.value.first_error
    assert e.value.first_error in e.value.message
    assert "network connections" in e.value.hint
    g.group.thaw()
    seen = len(g.lines())
    until(lambda: len(g.lines()) > seen, "it goes on after the failed dump")


def test_a_restore_says_what_differs(start: Start) -> None:
    g = start("count")
    g.dump()
    g.end()
    with g.out.open("a") as f:
        f.write("somebody else\n")
    with pytest.raises(CriuError, match=r"File .* has bad size") as e:
        g.restore()
    assert "differs there" in e.value.hint


def test_a_worker_that_dies_says_so() -> None:
    worker = Worker.start()
    os.kill(worker.pid, signal.SIGKILL)
    rpc = layout.rpc()
    with pytest.raises(CriuError, match="signal 9"):
        worker.call(rpc.criu_req(type=rpc.VERSION))
    assert worker.close() == -signal.SIGKILL


def test_a_missing_criu_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(CriuError) as e:
        Worker.start(base=str(tmp_path))
    assert "make env" in e.value.hint


def test_another_users_process_needs_the_shim_where_the_capability_is_missing(start: Start) -> None:
    g = start("count", user=65534, group=65534, extra_groups=[])
    if layout.needs_shim():
        with pytest.raises(CriuError, match="Can't get rlimit") as e:
            g.dump(shim=False)
        assert "CAP_SYS_RESOURCE" in e.value.hint
        g.group.thaw()
    g.dump()
    g.end()
    g.restore()
    assert procfs.status(g.pid).uids == (65534,) * 4
