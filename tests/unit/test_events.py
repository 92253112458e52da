"""Events as lines of the log and of mosctl, those of the whole pool, and how many lines a log takes."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omdiscd import event_words, pool_events
from omdiscd.events import Events
from omdiscd.pool_events import PoolEvents
from omtools import events as tool

from mig import logs
from mig.model import NodeInfo

MOVE: dict[str, Any] = {
    "t": 1764000000.0, "kind": "move", "mid": "257-42-1764", "pid": 42, "comm": "awk", "home": "n1", "from": "n1", "to": "n2",
    "outcome": "arrived", "pause_ms": 45.0, "total_ms": 1250.0, "bytes": 3 << 20, "reason": "user 0 asked",
}  # fmt: skip
FAILED = MOVE | {"outcome": "rolled-back", "step": "dump", "error": "criu: no"}


def test_a_move_is_one_line_with_its_number_process_nodes_and_step() -> None:
    assert event_words.line(MOVE) == (
        "move 257-42-1764: process 42 (awk) n1 -> n2 arrived, pause_ms=45.0, total_ms=1250.0, bytes=3145728, because user 0 asked"
    )
    assert "rolled-back in step dump" in event_words.line(FAILED) and "error: criu: no" in event_words.line(FAILED)
    assert [event_words.level(e) for e in (MOVE, FAILED, {"outcome": "lost"})] == [logging.INFO, logging.WARNING, logging.ERROR]


@given(st.dictionaries(st.sampled_from([*MOVE, "step", "error", "status"]), st.text() | st.integers() | st.none()))
def test_whatever_a_peer_says_is_one_line_that_steers_no_terminal(e: dict[str, Any]) -> None:
    assert event_words.line(e).isprintable()


def test_the_line_of_mosctl() -> None:
    words = tool.line(MOVE | {"node": "n1"}).split("  ")
    assert re.fullmatch(r"\d\d:\d\d:\d\d", words[0]) and words[1:] == [
        "n1:", "move", "42 (awk)", "n1 → n2", "arrived", "paused 45 ms", "1.2 s in all", "3.0M", "because: user 0 asked",
    ]  # fmt: skip
    assert tool.line(FAILED | {"comm": "a\x1b[2J"}).isprintable()


def test_an_event_is_logged_when_it_happens(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="omdiscd"):
        Events().relay(FAILED)
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [("WARNING", event_words.line(FAILED))]


# -- how many lines ---------------------------------------------------------------------------------------------------------------


def test_more_lines_of_a_kind_are_counted_and_told_later() -> None:
    rates = logs.Rates(most=2, period=10)
    assert [rates.take("a", t)[0] for t in (0, 1, 2, 3)] == [True, True, False, False]
    assert rates.take("b", 3) == (True, 0)
    assert rates.take("a", 10) == (True, 2)
    assert rates.take("a", 11) == (True, 0)


@given(st.lists(st.floats(0, 5), max_size=200))
def test_no_line_is_forgotten_in_the_count(gaps: list[float]) -> None:
    rates, now, written, told = logs.Rates(most=5, period=10), 0.0, 0, 0
    for gap in gaps:
        now += gap
        passes, left_out = rates.take("x", now)
        written += passes
        told += left_out
    passes, left_out = rates.take("x", now + 100)
    assert passes and written + told + left_out == len(gaps)


def test_errors_always_pass() -> None:
    f = logs.RateFilter(logs.Rates(most=1), lambda: 0.0)
    record = logging.LogRecord("x", logging.ERROR, "f", 1, "m", (), None)
    assert all(f.filter(record) for _ in range(5))
    record.levelno = logging.INFO
    assert [f.filter(record) for _ in range(3)] == [True, False, False]


def test_the_journal_gets_severities_and_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(tmp_path / "log", "w") as f:
        assert not logs.journal_reads(f.fileno())
        s = os.fstat(f.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{s.st_dev}:{s.st_ino}")
        assert logs.journal_reads(f.fileno())
    assert not logs.journal_reads(987654)
    record = logging.LogRecord("x", logging.WARNING, "f", 1, "one\ntwo", (), None)
    assert logs.JournalFormatter().format(record) == "<4>one\n<4>two"


def test_helpers_name_themselves_and_the_move_and_are_no_flood(tmp_path: Path) -> None:
    code = (
        "import logging, os; from mig import logs; logs.to_stderr(who='agent 7'); log = logging.getLogger('x')\n"
        "log.info('%d before', 1); logs.about('1-7-99'); log.warning('a %s', 'b'); log.info('move 1-7-99 is told once')\n"
        "for i in range(300): log.info('again')\n"
        "os.system('echo child $MIG_MOVE >&2'); logs.about(''); log.info('after')"
    )
    r = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "MIG_MOVE": ""})
    said = [line.split(" ", 2)[2] if line[0].isdigit() else line for line in r.stderr.splitlines()]
    assert said == [
        "INFO agent 7: 1 before", "WARNING agent 7: move 1-7-99: a b", "INFO agent 7: move 1-7-99 is told once",
        *["INFO agent 7: move 1-7-99: again"] * logs.MOST_OF_HELPERS, "child 1-7-99", "INFO agent 7: after",
    ]  # fmt: skip


# -- of the pool ------------------------------------------------------------------------------------------------------------------


class Pool:
    """Stands in for :class:`Targets`: nodes that answer from their own events, by clocks of their own."""

    def __init__(self, clocks: dict[int, float]) -> None:
        self.their = {i: Events() for i in clocks}
        self.clocks, self.deaf = clocks, set[int]()
        self.all = [NodeInfo(id=i, name=f"n{i}", addr=f"10.0.0.{i}", state="alive") for i in (1, *clocks)]

    def nodes(self) -> list[NodeInfo]:
        return self.all

    def me(self) -> NodeInfo:
        return self.all[0]

    async def events(self, n: NodeInfo, **m: Any) -> dict[str, Any] | None:
        if n.id in self.deaf:
            return None
        with pytest.MonkeyPatch.context() as patch:
            now = time.time() + self.clocks[n.id]
            patch.setattr(time, "time", lambda: now)
            return pool_events.answer(self.their[n.id], m)


def happen(events: Events, ago: float, clock: float = 0, **e: Any) -> None:
    events.relay({"kind": "move", "t": time.time() + clock - ago, **e})


def test_events_of_all_nodes_by_our_time_each_once() -> None:
    pool, ours = Pool({2: 3600.0, 3: -3600.0}), Events()
    happen(ours, 2, pid=1)
    happen(pool.their[2], 3, 3600.0, pid=2)
    happen(pool.their[3], 1, -3600.0, pid=3)
    happen(pool.their[3], 90, -3600.0, pid=4)
    pool.their[3].add("node", to="n1", outcome="alive")

    async def look() -> None:
        p = PoolEvents(pool, ours, time.time() - 60)  # type: ignore[arg-type]  # the part of Targets that it uses
        found, silent = await p.look()
        assert [(e["node"], e["pid"]) for e in found] == [("n2", 2), ("n1", 1), ("n3", 3)] and not silent
        assert all(abs(time.time() - e["t"]) < 60 for e in found)
        assert await p.look() == ([], [])
        happen(pool.their[2], 0, 3600.0, pid=5)
        pool.deaf.add(3)
        found, silent = await p.look()
        assert [(e["node"], e["pid"]) for e in found] == [("n2", 5)] and silent == ["n3"]

    asyncio.run(look())


def test_a_node_that_does_not_know_the_question_is_silent() -> None:
    class Old(Pool):
        async def events(self, n: NodeInfo, **m: Any) -> dict[str, Any] | None:
            return {"op": "unknown", "asked": "events"}

    assert asyncio.run(PoolEvents(Old({2: 0.0}), Events(), 0).look()) == ([], ["n2"])  # type: ignore[arg-type]  # as above
