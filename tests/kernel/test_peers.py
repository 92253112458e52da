"""The listener for other nodes, in this process: what a burst of connections can do to it."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any

import pytest
from omdiscd import peers
from omdiscd.peers import PeerServer

from mig.config import Config
from mig.trust import links
from tests.kernel.channels_lab import in_loop

PORT = 17243


@in_loop
async def test_a_burst_of_silent_connections_does_not_pass_the_bound(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All wait to be accepted at the same moment; the bound holds although no greeting has begun by then, and others get their turn."""
    greeting, most, turns = 0, 0, 0

    async def silent(conn: socket.socket, **_: Any) -> Any:
        nonlocal greeting, most
        greeting += 1
        most = max(most, greeting)
        try:
            await asyncio.sleep(3600)
        finally:
            greeting -= 1
            conn.close()

    monkeypatch.setattr(peers, "_BACKLOG", 512)
    monkeypatch.setattr(links, "accept", silent)
    nobody: Any = None
    server = PeerServer(Config(), lambda: [], nobody, nobody, nobody, nobody)
    server.start("127.0.0.1", PORT)
    crowd = [socket.create_connection(("127.0.0.1", PORT), 5) for _ in range(200)]
    run = asyncio.create_task(server.run())
    try:
        with caplog.at_level(logging.WARNING):
            while server.strangers.total < 200 - peers._GREETERS:
                turns += 1
                await asyncio.sleep(0)
        assert most == peers._GREETERS
        assert turns > 100
        assert "others have not said who they are" in caplog.text
    finally:
        run.cancel()
        server.close()
        for s in crowd:
            s.close()
        await asyncio.sleep(0.01)
    assert not greeting
