"""What the tests of channels share: a loop in which no callback may fail, a connection, waiting."""

from __future__ import annotations

import asyncio
import functools
import socket
from collections.abc import Callable, Coroutine
from typing import Any


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a coroutine as a test; whatever a callback of the loop raises fails it."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        errors: list[dict[str, Any]] = []

        async def main() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, c: errors.append(c))
            await asyncio.wait_for(test(*args, **kwargs), 60)

        asyncio.run(main())
        assert not errors, errors

    return run


def connection() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        a = socket.create_connection(listener.getsockname())
        b, _ = listener.accept()
    for s in (a, b):
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return a, b


async def until(condition: Callable[[], object]) -> None:
    """Wait until ``condition()`` is true; the test's own time limit ends it."""
    while not condition():
        await asyncio.sleep(0.002)
