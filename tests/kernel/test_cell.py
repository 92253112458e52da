"""A cell: a process goes from home into one, and on into the next, and finds everything as at home."""

from __future__ import annotations

import asyncio
import os
import select
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from mig.errors import MigError
from mig.kernel import procfs
from tests.kernel.cell_lab import Lab, Remote, lab, make_kdat, read_answer, read_line, until

Test = Callable[[Lab], Awaitable[None]]


@pytest.fixture(scope="session")
def kdat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    at = tmp_path_factory.mktemp("criu") / "kdat"
    make_kdat(at)
    return at


@pytest.fixture
def within(tmp_path: Path, kdat: Path) -> Callable[[Test], None]:
    """Run a test's coroutine with a lab; nothing is left of it afterwards."""

    async def go(test: Test) -> None:
        async with lab(tmp_path, kdat) as it:
            await test(it)

    def run(test: Test) -> None:
        asyncio.run(go(test))

    return run


def as_at_home(there: dict[str, object], home: dict[str, object]) -> bool:
    assert there == home | {"host": "cell-home"}
    return True


async def two_cells(it: Lab, home: dict[str, object], **changed: object) -> Remote:
    """Through a first and a second cell; the guest must be as at home in both.  Returns the second."""
    home = home | {k: v for k, v in changed.items() if k in home}
    first = await it.leave_home(**changed)
    assert as_at_home(first.ask("ids"), home)
    second = await it.move_on(first)
    assert as_at_home(second.ask("ids"), home)
    return second


def reads(cell: Remote) -> bool:
    """It waits in read(2)."""
    pid = procfs.host_pid(cell.guest_cgroup.procs(), cell.pid)
    call = procfs.syscall(pid, pid)
    return call is not None and call.nr == 0 and procfs.state(pid) == "S"


def exits_with(cell: Remote, status: int) -> None:
    os.write(cell.orders, f"exit {status}\n".encode())
    assert os.waitstatus_to_exitcode(cell.event("exited")["status"]) == status


def test_pipes_and_exit_status(within: Callable[[Test], None]) -> None:
    async def test(it: Lab) -> None:
        it.home.by_pipes()
        cell = await two_cells(it, it.home.ask("ids"))
        assert cell.ask("spin") == {"spun": sum(range(10**7))}
        exits_with(cell, 37)

    within(test)


def test_the_guest_leads_its_own_session(within: Callable[[Test], None]) -> None:
    async def test(it: Lab) -> None:
        it.home.by_pipes(start_new_session=True)
        home = it.home.ask("ids")
        assert home["sid"] == home["pid"]
        exits_with(await two_cells(it, home), 3)

    within(test)


def test_a_child_of_a_shell_that_leads_the_session(within: Callable[[Test], None]) -> None:
    async def test(it: Lab) -> None:
        it.home.by_pipes(shell='"$@"; exit $?', start_new_session=True)
        home = it.home.ask("ids")
        assert home["sid"] == home["ppid"] == home["pgid"]
        exits_with(await two_cells(it, home), 4)

    within(test)


def test_session_leader_and_parent_are_two_processes(within: Callable[[Test], None]) -> None:
    async def test(it: Lab) -> None:
        it.home.by_pipes(shell="""bash -c '"$@"; exit $?' inner "$@"; exit $?""", start_new_session=True)
        home = it.home.ask("ids")
        assert home["sid"] == home["pgid"] and home["ppid"] not in (home["sid"], home["pid"])
        exits_with(await two_cells(it, home), 5)

    within(test)


def test_the_group_is_led_by_another_process_of_a_pipeline(within: Callable[[Test], None]) -> None:
    async def test(it: Lab) -> None:
        it.home.by_pipes(shell='exec 3<&0; set -m; sleep 1000 3<&- >&3 | "$@" 0<&3 3<&-; exit $?', start_new_session=True)
        home = it.home.ask("ids")
        assert len({home["pid"], home["ppid"], home["pgid"]}) == 3
        exits_with(await two_cells(it, home), 6)

    within(test)


@pytest.mark.parametrize("sid", ["its own", "another's", "of pid 1"])
def test_the_parent_is_pid_1(within: Callable[[Test], None], sid: str) -> None:
    async def test(it: Lab) -> None:
        it.home.by_pipes(start_new_session=sid == "its own")
        changed = {"sid": 1, "pgid": 1} if sid == "of pid 1" else {}
        exits_with(await two_cells(it, it.home.ask("ids"), ppid=1, **changed), 7)

    within(test)


def test_threads_and_a_tree(within: Callable[[Test], None]) -> None:
    async def test(it: Lab) -> None:
        it.home.by_pipes("threads", "children")
        home = it.home.ask("ids")
        assert len(home["tids"]) == 4 and len(home["children"]) == 2
        cell = await two_cells(it, home)
        assert len(cell.guest_cgroup.procs()) == 5
        assert cell.ask("fork") == {"forked": 3}
        until(lambda: len(cell.guest_cgroup.procs()) == 7, "child and grandchild")  # what it forks is born beside it
        exits_with(cell, 0)

    within(test)


def test_an_ordinary_user(within: Callable[[Test], None]) -> None:
    async def test(it: Lab) -> None:
        it.home.by_pipes(uid=1000)
        home = it.home.ask("ids")
        assert home["uid"] == 1000
        exits_with(await two_cells(it, home), 8)

    within(test)


def test_a_foreground_job_of_an_interactive_shell(within: Callable[[Test], None]) -> None:
    async def test(it: Lab) -> None:
        it.home.by_terminal()
        home = it.home.ask("ids")
        assert home["tty"] and home["tpgid"] == home["pgid"] == home["pid"] and home["sid"] == home["ppid"]
        exits_with(await two_cells(it, home), 9)

    within(test)


def test_a_terminal_and_pid_1_as_parent(within: Callable[[Test], None]) -> None:
    async def test(it: Lab) -> None:
        it.home.by_terminal()
        exits_with(await two_cells(it, it.home.ask("ids"), ppid=1), 10)

    within(test)


def test_a_guest_that_leads_the_session_of_its_terminal(within: Callable[[Test], None]) -> None:
    async def test(it: Lab) -> None:
        it.home.by_terminal(leader=True)
        home = it.home.ask("ids")
        assert home["tpgid"] == home["sid"] == home["pid"]
        exits_with(await two_cells(it, home), 11)

    within(test)


def test_a_terminal_that_is_not_the_controlling_one(within: Callable[[Test], None]) -> None:
    async def test(it: Lab) -> None:
        it.home.by_terminal(line="setsid -w GUEST")
        home = it.home.ask("ids")
        assert home["tty"] and home["tpgid"] == -1
        exits_with(await two_cells(it, home), 12)

    within(test)


def test_a_terminal_that_is_not_the_controlling_one_of_another_leaders_session(within: Callable[[Test], None]) -> None:
    async def test(it: Lab) -> None:
        it.home.by_terminal(line="""setsid -w sh -c 'GUEST; exit $?'""")
        home = it.home.ask("ids")
        assert home["sid"] == home["ppid"] and home["tpgid"] == -1
        exits_with(await two_cells(it, home), 13)

    within(test)


def test_home_again(within: Callable[[Test], None]) -> None:
    async def test(it: Lab) -> None:
        it.home.by_terminal("threads")
        home = it.home.ask("ids")
        away = await it.leave_home()
        back = await it.move_on(away, "home")
        assert back.ask("ids") == home  # the machine's own name, and the terminal's number although the real one is still in use
        again = await it.move_on(back)
        assert as_at_home(again.ask("ids"), home)
        exits_with(again, 14)

    within(test)


def test_a_guest_in_the_background_gets_the_terminal(within: Callable[[Test], None]) -> None:
    async def test(it: Lab) -> None:
        it.home.by_terminal()
        home = it.home.ask("ids")
        shell, guest = home["ppid"], home["pid"]
        cell = await it.leave_home(tpgid=shell)
        os.write(cell.orders, b"ids\n")
        assert cell.event("stopped")["sig"] == signal.SIGTTIN  # reading in the background
        cell.tell("foreground", on=True)
        cell.tell("signal", sig=signal.SIGCONT)
        cell.event("continued")
        assert read_answer(cell.answers)["tpgid"] == guest
        cell.tell("foreground", on=False)
        assert os.tcgetpgrp(cell.orders) != 0  # a master shows the group, in our numbers
        os.write(cell.orders, b"ids\n")
        assert cell.event("stopped")["sig"] == signal.SIGTTIN
        cell.tell("foreground", on=True)
        cell.tell("signal", sig=signal.SIGCONT)
        cell.event("continued")
        assert read_answer(cell.answers)["tpgid"] == guest
        exits_with(cell, 15)

    within(test)


def test_a_group_that_is_the_whole_session_can_lose_the_terminal_too(within: Callable[[Test], None]) -> None:
    async def test(it: Lab) -> None:
        it.home.by_terminal(line="exec sh -c 'GUEST; exit $?'")
        home = it.home.ask("ids")
        assert home["pgid"] == home["sid"] == home["tpgid"] == home["ppid"]
        cell = await it.leave_home()
        until(lambda: reads(cell), "the guest reads")  # who begins to read in the background, in a session without parents, gets EIO
        cell.tell("foreground", on=False)
        cell.tell("foreground", on=True)
        assert as_at_home(cell.ask("ids"), home)
        exits_with(cell, 16)

    within(test)


def test_a_signal_to_the_whole_group_spares_the_stand_ins(within: Callable[[Test], None]) -> None:
    async def test(it: Lab) -> None:
        it.home.by_pipes(shell='"$@"; exit $?', start_new_session=True)
        cell = await it.leave_home()
        os.write(cell.orders, b"kill0 15\n")
        assert cell.event("exited")["status"] == signal.SIGTERM

    within(test)


def test_a_kill_of_everything_is_told_as_the_guests_end(within: Callable[[Test], None]) -> None:
    async def test(it: Lab) -> None:
        it.home.by_pipes(shell='"$@"; exit $?', start_new_session=True)
        cell = await it.leave_home()
        os.write(cell.orders, b"kill0 9\n")  # takes the foster parent along: pid 1 inherits the guest
        assert cell.event("exited")["status"] == signal.SIGKILL

    within(test)


def test_cpu_time_and_end_of_file(within: Callable[[Test], None]) -> None:
    async def test(it: Lab) -> None:
        it.home.by_pipes()
        cell = await it.leave_home()
        cell.ask("spin")
        os.write(cell.orders, b"exit 0\n")
        assert cell.event("exited")["utime"] > 0.01
        os.set_blocking(cell.answers, True)
        assert os.read(cell.answers, 1) == b""  # nobody else in the cell holds the guest's pipes
        with pytest.raises(BrokenPipeError):
            os.write(cell.orders, b"x")

    within(test)


def test_an_abort_at_the_barrier_leaves_nothing(within: Callable[[Test], None]) -> None:
    async def test(it: Lab) -> None:
        it.home.by_pipes("children")
        cell = await it.prepare()
        await it.home.dump(it.img)
        cell.tell("restore")
        cell.tell("freeze")
        assert len(cell.guest_cgroup.procs()) >= 6  # CRIU and the guest's processes
        cell.tell("kill")
        assert not cell.cgroup.exists()
        it.home.group.thaw()
        assert it.home.ask("ids")["pid"] == it.home.pid

    within(test)


def test_the_guest_does_not_run_when_criu_dies_at_the_barrier(within: Callable[[Test], None]) -> None:
    async def test(it: Lab) -> None:
        it.home.by_pipes()
        cell = await it.prepare()
        await it.home.dump(it.img)
        cell.tell("restore")
        cell.tell("freeze")
        guest = procfs.host_pid(cell.guest_cgroup.procs(), it.home.pid)
        os.write(cell.orders, b"ids\n")
        used = procfs.stat(guest).utime, procfs.stat(guest).stime
        for p in cell.guest_cgroup.procs():
            if p != guest:
                os.kill(p, signal.SIGKILL)
        until(lambda: cell.guest_cgroup.procs() == [guest], "the end of CRIU")
        await asyncio.sleep(0.1)
        assert (procfs.stat(guest).utime, procfs.stat(guest).stime) == used
        assert not select.select([cell.answers], [], [], 0)[0]
        with pytest.raises(MigError, match=r"cell, (release|restore)"):
            cell.tell("go")

    within(test)


def test_a_failed_restore_quotes_criu(within: Callable[[Test], None]) -> None:
    async def test(it: Lab) -> None:
        it.home.by_pipes()
        cell = await it.prepare()
        await it.home.dump(it.img)
        (it.img / f"core-{it.home.pid}.img").unlink()
        with pytest.raises(MigError, match="cell, restore: CRIU could not restore the process: Error "):
            cell.tell("restore")

    within(test)


def test_a_cell_that_cannot_be_made_says_what_failed_and_leaves_nothing(within: Callable[[Test], None]) -> None:
    async def test(it: Lab) -> None:
        it.home.by_pipes()
        with pytest.raises(MigError, match=r"cell, family: .*kernel.pid_max"):
            await it.prepare(ppid=1 << 22)

    within(test)


def test_the_cell_ends_with_its_keeper(within: Callable[[Test], None]) -> None:
    async def test(it: Lab) -> None:
        it.home.by_pipes("children")
        cell = await it.leave_home()
        cell.process.kill()
        until(lambda: not cell.cgroup.populated(), "the end of the cell")

    within(test)


def test_a_stopped_guest_arrives_stopped(within: Callable[[Test], None]) -> None:
    async def test(it: Lab) -> None:
        it.home.by_pipes()
        home = it.home.ask("ids")
        os.kill(it.home.pid, signal.SIGSTOP)
        cell = await it.leave_home()
        assert cell.event("stopped")["sig"] == signal.SIGSTOP
        cell.tell("signal", sig=signal.SIGCONT)
        cell.event("continued")
        assert as_at_home(cell.ask("ids"), home)
        exits_with(cell, 17)

    within(test)


def test_an_interactive_shell_moves_with_its_foreground_job(within: Callable[[Test], None]) -> None:
    async def test(it: Lab) -> None:
        it.home.by_terminal(line="bash --norc --noprofile -i")
        it.home.type_guest()
        home = it.home.ask("ids")
        it.home.take_parent()
        assert home["tpgid"] == home["pid"] and it.home.pid == home["ppid"]
        cell = await two_cells(it, home)
        os.write(cell.orders, b"exit 3\n")
        os.write(cell.orders, b"echo $?-$((6*7))\n")
        while b"3-42" not in read_line(cell.answers):
            pass
        os.write(cell.orders, b"exit 18\n")
        assert os.waitstatus_to_exitcode(cell.event("exited")["status"]) == 18

    within(test)
