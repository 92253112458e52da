"""When the pool's machine gets its turns in omdiscd."""

from __future__ import annotations

import asyncio
import random

import pytest
from omdiscd.discovery import Discovery, clock
from omdiscd.seal import Seal

from mig.model import NodeInfo
from mig.pool import wire
from mig.pool.message import LEFT, NEWS, Message, Rumor
from mig.pool.outcome import Send
from mig.pool.pool import Pool
from mig.pool.timing import Timing

KEY = bytes(32)


def node(i: int) -> NodeInfo:
    return NodeInfo(i, f"n{i}", f"127.0.0.{i}", 7230, incarnation=1, boot=f"b{i}")


def test_what_is_gathered_does_not_wait_for_the_next_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else is due for an hour; of three who leave at once the first is told at once, the others together a moment later."""
    told: list[tuple[float, set[int]]] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        rare = Timing(hello_s=3600, gossip_s=3600, probe_s=3600, repair_s=360000, early_s=0, slept_s=3600)
        pool = Pool(node(1), [], rare, random.Random(1), clock())
        discovery = Discovery(pool, Seal(KEY, 1, 1), group="", interfaces=[], me=lambda: node(1), changed=lambda _: None)

        def send(s: Send) -> None:
            if s.message.urgent:
                told.append((loop.time(), {r.id for r in s.message.rumors if r.state == LEFT}))

        monkeypatch.setattr(discovery, "_send", send)
        run = asyncio.create_task(discovery.run())
        await asyncio.sleep(0)
        seal = Seal(KEY, 2, 1)
        source = ("127.0.0.2", 7230)
        discovery.received(seal.seal(wire.encode(Message(NEWS, records=[node(i) for i in range(2, 12)]))), source, False)
        for i in (5, 6, 7):
            m = Message(NEWS, urgent=True, rumors=[Rumor(i, 1, LEFT, i)])
            discovery.received(seal.seal(wire.encode(m)), source, False)
        assert set.union(*(ids for _, ids in told)) == {5}
        async with asyncio.timeout(20):
            while set.union(*(ids for _, ids in told)) != {5, 6, 7}:
                await asyncio.sleep(0.001)
        run.cancel()

    asyncio.run(main())
    first, later = [t for t, ids in told if ids == {5}], [t for t, ids in told if ids == {6, 7}]
    assert len(first) + len(later) == len(told) and 0 < len(first) <= 3 and 0 < len(later) <= 3
    assert later[0] - first[0] >= Timing().gather_s - 0.001
