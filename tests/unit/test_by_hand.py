"""Who blocked a node, and who may open it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest
from omdiscd import by_hand
from omdiscd.by_hand import Block, ByHand
from omdiscd.doors import Doors
from omdiscd.events import Events
from omdiscd.steered import Steered

from mig import paths
from mig.config import Config
from mig.errors import MigError, NotPermitted
from mig.model import NodeInfo
from mig.trust.store import Peer

ME = NodeInfo(2, "n2", "10.0.0.2")


class Emptying:
    """Counts who does not want it empty any more."""

    def __init__(self) -> None:
        self.stopped: list[str] = []
        self.listeners: list[Any] = []
        self.busy = False

    def start(self, who: str, why: str, *, fast: bool) -> None:
        self.busy = True

    def running(self) -> int:
        return 0

    def here(self) -> list[Any]:
        return []

    def stop(self, who: str) -> None:
        self.stopped.append(who)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ByHand:
    monkeypatch.setattr(paths, "RUN", tmp_path)
    return made()


def made(**config: Any) -> ByHand:
    return ByHand(Config(**config), Doors(lambda open_, why: None), cast("Any", Emptying()), Events(), lambda: ME, lambda: False)


def test_a_block_that_was_typed_here_is_opened_here_only(node: ByHand) -> None:
    node.block()
    node.block("n1")
    assert node.doors.why == "blocked by its administrator"
    with pytest.raises(NotPermitted, match="on n2 itself"):
        node.noblock("n1")
    assert node.doors.why and not cast("Any", node.evictor).stopped
    node.noblock()
    assert not node.doors.why and cast("Any", node.evictor).stopped


@pytest.mark.parametrize("by", ["", "n1", "n3"])
def test_one_from_elsewhere_is_opened_from_anywhere(node: ByHand, by: str) -> None:
    node.block("n1")
    assert node.doors.why == "blocked by root of n1"
    node.noblock(by)
    assert not node.doors.why and by_hand.remembered(node.config) is None


def test_expelling_ends_when_it_is_known_where_everybody_went(node: ByHand) -> None:
    """A guest's keeper is gone before the node hears from its home where it is."""
    evictor, items = cast("Any", node.evictor), list[dict[str, Any]]()

    async def item(**m: Any) -> None:
        items.append(m)

    async def answer_late() -> None:
        await asyncio.sleep(2 * by_hand._LOOK)
        evictor.listeners[0]({"here": 7, "outcome": "stored", "to": "n1"})
        evictor.busy = False

    async def run() -> dict[str, Any]:
        result, _ = await asyncio.gather(node.expel(item, fast=False), answer_late())
        return result

    assert asyncio.run(run()) == {"moved": 1}
    assert items[-1]["outcome"] == "stored"


def test_typing_it_here_as_well_makes_it_ours(node: ByHand) -> None:
    node.block("n1")
    node.block()
    with pytest.raises(NotPermitted):
        node.noblock("n1")


@pytest.mark.parametrize("by", ["", "n1"])
def test_it_is_remembered_with_who_it_was(node: ByHand, by: str) -> None:
    node.block(by)
    assert made().blocked == Block(by)


def test_the_configuration_s_word_is_the_administrator_s(node: ByHand) -> None:
    assert by_hand.remembered(Config(accept=False)) == Block()


@pytest.mark.parametrize("name", ["", "  "])
def test_a_node_without_a_name_is_not_taken_for_somebody_here(node: ByHand, name: str) -> None:
    async def order(do: str) -> dict[str, Any]:
        async def item(**news: Any) -> None:
            raise AssertionError(news)

        served = Steered(node, lambda: [ME, NodeInfo(7, name, "10.0.0.7")])
        return await served._do({"do": do}, Peer(7, name), item)

    asyncio.run(order("block"))
    assert node.doors.why == "blocked by root of node 7" and by_hand.remembered(node.config) == Block("node 7")
    node.block()
    with pytest.raises(NotPermitted, match="on n2 itself"):
        asyncio.run(order("noblock"))
    with pytest.raises(MigError, match="no order 'reboot'"):
        asyncio.run(order("reboot"))


@pytest.mark.parametrize(
    ("config", "may"),
    [({}, True), ({"remote_orders": False}, False), ({"allow_from": ("n1",)}, True), ({"allow_from": ("10.1.0.0/16", "n3")}, False)],
)
def test_who_may_order(node: ByHand, config: dict[str, Any], may: bool) -> None:
    asker, there = NodeInfo(1, "n1", "10.0.0.1"), made(**config)
    if may:
        there.permit(asker)
    else:
        with pytest.raises(NotPermitted, match="n2 takes no orders"):
            there.permit(asker)
