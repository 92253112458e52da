"""Who orders a move gets one answer, and hears nothing of the answers that others get."""

from __future__ import annotations

import asyncio
from typing import Any

from mig.agent.move_order import MoveOrder
from mig.errors import CannotMove
from mig.model import NodeInfo
from mig.tasks import Tasks


def order(ident: int, said: list[dict[str, Any]]) -> MoveOrder:
    """One to move awk from n1 to n2; what its caller is told comes into ``said``."""

    async def reply(m: dict[str, Any]) -> None:
        said.append(m)

    to = NodeInfo(id=2, name="n2", addr="10.0.0.2", port=7230, boot="b")
    return MoveOrder({"id": ident, "to": vars(to)}, reply, 42, "awk", "n1", Tasks())


def test_one_answer() -> None:
    """After "unknown" the outcome is an event only."""
    said: list[dict[str, Any]] = []

    async def move() -> None:
        o = order(7, said)
        await o.answer_unknown()
        await o.answer(None, {"pause_ms": 1.0})

    asyncio.run(move())
    (answer,) = said
    assert answer["id"] == 7 and not answer["ok"] and "n2 has not answered" in answer["error"]["message"]


def test_an_order_that_is_refused_leaves_the_one_under_way_its_answer() -> None:
    """They come to the same agent, and each has a caller of its own."""
    said: list[dict[str, Any]] = []

    async def move() -> None:
        first, second = order(1, said), order(2, said)
        await second.answer(CannotMove("awk (42) is just being moved"), {})
        await first.answer(None, {"pause_ms": 1.0})

    asyncio.run(move())
    assert [(m["id"], m["ok"]) for m in said] == [(2, False), (1, True)]
