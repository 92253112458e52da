"""What is said of a network that is silent."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from omdiscd import netwatch
from omdiscd.netwatch import NetWatch

from mig.config import Config


def pool(monkeypatch: pytest.MonkeyPatch, ids: set[int]) -> tuple[NetWatch, Any]:
    """A node's view of a pool, and its clock."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(netwatch.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(netwatch.addresses, "interface_of", lambda addr: "e0")
    me = SimpleNamespace(addr="10.0.0.1", port=7231)
    members = SimpleNamespace(me=me, table=SimpleNamespace(ids=ids), clash="")
    discovery: Any = SimpleNamespace(members=members, interfaces=["e0"], group="239.7.7.7", wanted=[])
    return NetWatch(Config(), discovery, [], lambda why: None), clock


def test_alone_for_half_a_minute_is_told_once_with_what_to_look_at(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    watch, clock = pool(monkeypatch, set())
    with caplog.at_level(logging.WARNING):
        clock.now += 29
        watch.look()
        assert not caplog.messages
        for _ in range(3):
            clock.now += 2
            watch.look()
    (line,) = caplog.messages
    assert line.startswith("no other node was heard of in 30 s (hellos to 239.7.7.7 on e0)")
    assert "our key" in line and "port 7231" in line and "IGMP snooping" in line and line.endswith("set seeds")


def test_in_company_nothing_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    watch, clock = pool(monkeypatch, {2})
    clock.now += 60
    watch.look()
    assert not caplog.messages
