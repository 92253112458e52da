"""The agent's side of the file server."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess

import pytest

from mig import wire
from mig.agent import files
from mig.agent.files import FileServer


@pytest.mark.parametrize("command", [["true"], ["sleep", "60"]])
def test_a_server_that_ended_by_itself_is_no_error_at_the_stop(command: list[str]) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        server = FileServer(subprocess.Popen(command), ours, "127.0.0.1", 0)
        if command == ["true"]:
            os.waitid(os.P_PID, server.proc.pid, os.WEXITED | os.WNOWAIT)
        for _ in range(2):
            asyncio.run(server.stop())
        assert server.proc.returncode is not None


@pytest.mark.parametrize("how", ["cancelled", "too late"])
def test_an_answer_that_nobody_waits_for_any_more_is_not_the_next_one_s(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def talk() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        server = FileServer(subprocess.Popen(["true"]), ours, "127.0.0.1", 0)
        try:
            if how == "cancelled":
                asked = asyncio.create_task(server.ask("first"))
                assert (await wire.arecv(theirs))["op"] == "first"
                asked.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asked
            else:
                monkeypatch.setattr(files, "ANSWER", 0.05)
                with pytest.raises(TimeoutError):
                    await server.ask("first")
                with pytest.raises(TimeoutError):
                    await server.ask("not even sent")
                assert (await wire.arecv(theirs))["op"] == "first"
                monkeypatch.setattr(files, "ANSWER", 10)
            asked = asyncio.create_task(server.ask("second"))
            await asyncio.sleep(0)
            await wire.asend(theirs, to="first")
            assert (await wire.arecv(theirs))["op"] == "second"
            await wire.asend(theirs, to="second")
            assert (await asked)["to"] == "second"
            asked = asyncio.create_task(server.ask("third"))
            await wire.arecv(theirs)
            theirs.close()
            with pytest.raises(EOFError):
                await asked
        finally:
            theirs.close()
            await server.stop()

    asyncio.run(talk())


def test_who_waits_for_an_answer_hears_of_the_end() -> None:
    async def talk() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        with theirs:
            server = FileServer(subprocess.Popen(["true"]), ours, "127.0.0.1", 0)
            asked = asyncio.create_task(server.ask("first"))
            assert (await wire.arecv(theirs))["op"] == "first"
            await server.stop()
            with pytest.raises(EOFError):
                await asked

    asyncio.run(talk())
