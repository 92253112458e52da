"""The agent's side of the file server."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess

import pytest

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
