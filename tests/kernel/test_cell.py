"""A cell: a process goes from home into one, and on into the next, and finds everything as at home."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.kernel.cell_lab import Lab, Remote, lab, make_kdat

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
