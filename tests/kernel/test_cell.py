"""A cell: a process goes from home into one, and on into the next, and finds everything as at home."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.kernel.cell_lab import Lab, Remote, lab, make_kdat, until

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
