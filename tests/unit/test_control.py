"""The control socket and the links to agents: real sockets, and an agent that only speaks the protocol."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import socket
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq
import zmq.asyncio
from omdiscd.control import MAX_REQUEST, Call, Control
from omdiscd.events import Events
from omdiscd.guests import Guests

from mig import paths, wire
from mig.errors import CannotMove, NotPermitted
from mig.model import GuestState, NodeInfo

Ask = Callable[..., Awaitable[list[dict[str, Any]]]]


async def echo(call: Call) -> dict[str, Any]:
    return {"uid": call.caller.uid, "pid": call.caller.pid, "said": call.request.get("say")}


async def refuse(call: Call) -> dict[str, Any]:
    raise CannotMove("no", reasons=["a", "b"], hint="c")


async def broken(call: Call) -> dict[str, Any]:
    raise RuntimeError("a bug")


async def count(call: Call) -> dict[str, Any]:
    for i in range(3):
        await call.item(i=i)
    return {"done": True}


def with_control(tmp_path: Path, body: Callable[[Ask, Control], Coroutine[Any, Any, None]]) -> None:
    """Run ``body`` with a served socket and a function that asks it and returns all answers."""

    async def main() -> None:
        control = Control(tmp_path / "c.sock", {"echo": echo, "refuse": refuse, "broken": broken, "count": count})
        control.start()
        task = asyncio.ensure_future(control.run())
        context = zmq.asyncio.Context()
        s = context.socket(zmq.DEALER)
        s.setsockopt(zmq.LINGER, 0)
        s.connect(f"ipc://{control.path}")

        async def ask(raw: bytes | None = None, **m: Any) -> list[dict[str, Any]]:
            await s.send(raw if raw is not None else msgpack.packb({"v": 1, "id": 7, **m}))
            out: list[dict[str, Any]] = []
            while not out or out[-1].get("more"):
                out.append(msgpack.unpackb(await asyncio.wait_for(s.recv(), 5)))
            return out

        try:
            await body(ask, control)
        finally:
            s.close()
            context.term()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            control.close()

    asyncio.run(main())
    assert not (tmp_path / "c.sock").exists()


def test_the_caller_is_known_from_the_kernel(tmp_path: Path) -> None:
    async def body(ask: Ask, control: Control) -> None:
        (m,) = await ask(op="echo", say="hi", uid=12345)
        assert m == {"v": 1, "id": 7, "more": False, "ok": True, "uid": os.geteuid(), "pid": os.getpid(), "said": "hi"}

    with_control(tmp_path, body)


def test_errors_keep_their_class_reasons_and_hint(tmp_path: Path) -> None:
    async def body(ask: Ask, control: Control) -> None:
        (m,) = await ask(op="refuse")
        assert m["error"] == {"code": "cannot-move", "message": "no", "reasons": ["a", "b"], "hint": "c"} and not m["ok"]

    with_control(tmp_path, body)


def test_a_bug_is_an_answer_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def body(ask: Ask, control: Control) -> None:
        (m,) = await ask(op="broken")
        assert m["error"]["code"] == "failed" and "RuntimeError" in m["error"]["message"]

    with_control(tmp_path, body)
    assert "a bug" in caplog.text


def test_streams(tmp_path: Path) -> None:
    async def body(ask: Ask, control: Control) -> None:
        *items, last = await ask(op="count")
        assert [m["i"] for m in items] == [0, 1, 2] and last["done"]

    with_control(tmp_path, body)


@pytest.mark.parametrize(
    "raw", [b"", b"\xc1", msgpack.packb([1]), msgpack.packb({"v": 99, "op": "echo"}), msgpack.packb({"v": 1, "op": "x"})]
)
def test_bad_requests_are_bad_input(tmp_path: Path, raw: bytes) -> None:
    async def body(ask: Ask, control: Control) -> None:
        (m,) = await ask(raw)
        assert m["error"]["code"] == "bad-input"
        assert (await ask(op="echo"))[0]["ok"], "and the server lives"

    with_control(tmp_path, body)


def test_a_request_over_the_limit_ends_only_its_connection(tmp_path: Path) -> None:
    async def body(ask: Ask, control: Control) -> None:
        with zmq.Context() as context, context.socket(zmq.DEALER) as rude:
            rude.setsockopt(zmq.LINGER, 0)
            rude.connect(f"ipc://{control.path}")
            rude.send(bytes(MAX_REQUEST + 1))
            await asyncio.sleep(0.05)
        assert (await ask(op="echo"))[0]["ok"]

    with_control(tmp_path, body)


def test_everybody_may_connect(tmp_path: Path) -> None:
    async def body(ask: Ask, control: Control) -> None:
        assert control.path.stat().st_mode & 0o777 == 0o666

    with_control(tmp_path, body)


def test_a_predecessors_socket_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "c.sock"))

    async def body(ask: Ask, control: Control) -> None:
        assert (await ask(op="echo"))[0]["ok"]

    with_control(tmp_path, body)


# -- events ---------------------------------------------------------------------------------------------------------------------------


def test_events_are_remembered_and_followed() -> None:
    async def main() -> None:
        e = Events()
        e.relay({"t": 1.0, "kind": "old"})
        q = e.follow()
        e.add("move", pid=5)
        assert [x["kind"] for x in e.since(0)] == ["old", "move"]
        assert [x["kind"] for x in e.since(1.0)] == ["move"]
        got = q.get_nowait()
        assert got is not None and got["pid"] == 5
        e.unfollow(q)
        e.add("move")
        assert q.empty()

    asyncio.run(main())


def test_a_follower_that_does_not_read_is_cut_off() -> None:
    async def main() -> None:
        e = Events()
        q = e.follow()
        for _ in range(1000):
            e.add("x")
        items = [q.get_nowait() for _ in range(q.qsize())]
        assert items[-1] is None and len(items) < 300

    asyncio.run(main())


# -- agents and keepers -----------------------------------------------------------------------------------------------------------------


class FakeAgent:
    """Speaks the protocol of an agent's socket: a row on ``watch``, two answers on ``move``."""

    def __init__(self, path: Path, row: GuestState) -> None:
        self.path, self.row = path, row
        self.heard: list[dict[str, Any]] = []
        self.clients: list[socket.socket] = []
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.listener.bind(str(path))
        self.listener.listen()
        self.task = asyncio.ensure_future(self.serve())

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            s, _ = await loop.sock_accept(self.listener)
            self.clients.append(s)
            try:
                while True:
                    m = await wire.arecv(s)
                    self.heard.append(m)
                    if m["op"] == "watch":
                        await wire.asend(s, op="state", state=dataclasses.asdict(self.row))
                        await wire.asend(s, op="event", event={"t": 1.0, "kind": "start", "pid": self.row.pid})
                    elif m["op"] == "shelve":
                        await wire.asend(s, op="costs", total_ms=2500.0, pause_ms=500.0, bytes=1000, rss=4096, cpu_ms=1500)
                    elif m["op"] == "move":
                        await wire.asend(s, op="progress", id=m["id"], step="ask", text="asking")
                        await wire.asend(s, op="moved", id=m["id"], ok=True, result={"pid": self.row.pid})
            except EOFError:
                s.close()

    async def die(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        for s in (*self.clients, self.listener):
            s.close()


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("AGENTS", "KEEPERS"):
        monkeypatch.setattr(paths, name, tmp_path / name.lower())
        (tmp_path / name.lower()).mkdir()
    return tmp_path


def row(pid: int, role: str = "agent", **kwargs: Any) -> GuestState:
    return GuestState(role, pid, kwargs.pop("home", "n1"), kwargs.pop("where", "n2"), kwargs.pop("state", "running"), **kwargs)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0.005)


def test_agents_are_found_ordered_and_missed(run_dir: Path) -> None:
    async def main() -> None:
        events: list[dict[str, Any]] = []
        changes: list[int] = []
        guests = Guests(lambda: NodeInfo(1, "n1", "127.0.0.1"), events.append, lambda: changes.append(1))
        agent = FakeAgent(paths.AGENTS / "100.sock", row(100, helper=4242))
        keeper = FakeAgent(paths.KEEPERS / "2-200-1.sock", row(200, "keeper", home="n2", where="n1", host_pid=777, helper=4243))
        guests.look()
        await until(lambda: len(guests.rows()) == 2)
        assert guests.hosted() == 1 and guests.helpers() == {4242, 4243}
        link = guests.agent(100)
        assert link is not None and guests.keeper(777) is not None and guests.keeper(778) is None
        i, answers = await link.order(op="move", to={}, mode="remote")
        ops = [(await asyncio.wait_for(answers.get(), 5) or {})["op"] for _ in range(2)]
        assert ops == ["progress", "moved"]
        link.done(i)
        await guests.tell_agents(NodeInfo(2, "n2", "127.0.0.2", boot="x"), "dead")
        await until(lambda: agent.heard[-1]["op"] == "node")
        assert agent.heard[-1] == {"op": "node", "name": "n2", "state": "dead", "boot": "x"}
        _, waiting = await link.order(op="lock", on=True)
        await agent.die()
        assert await asyncio.wait_for(waiting.get(), 5) is None, "whoever waits for an answer learns that none comes"
        await until(lambda: len(guests.rows()) == 1)
        assert {e["pid"] for e in events} == {100, 200}
        await keeper.die()
        await until(lambda: not guests.rows())

    asyncio.run(main())


def test_a_host_learns_what_moves_cost_whoever_ordered_them(run_dir: Path) -> None:
    """The keeper tells it."""
    from omdiscd.moves import Mover
    from omdiscd.targets import Targets

    from mig.config import Config

    async def main() -> None:
        me = NodeInfo(1, "n1", "127.0.0.1")
        guests = Guests(lambda: me, lambda e: None, lambda: None)
        targets = Targets(Config(), lambda: [me], lambda: me)
        guests.on_costs = Mover(None, guests, None, targets).learn  # type: ignore[arg-type]  # learning needs neither
        keeper = FakeAgent(paths.KEEPERS / "2-200-1.sock", row(200, "keeper", home="n2", where="n1", host_pid=777))
        guests.look()
        await until(lambda: guests.keeper(777) is not None)
        before, link = targets.knobs, guests.keeper(777)
        assert link is not None
        await link.order(op="shelve")
        await until(lambda: targets.measured.moves == 1)
        now = targets.knobs
        assert now.freeze_s == pytest.approx(0.75 * before.freeze_s + 0.25 * 0.5)
        assert now.setup_s == pytest.approx(0.75 * before.setup_s + 0.25 * 2.0)
        assert now.move_cpu_s == pytest.approx(0.75 * before.move_cpu_s + 0.25 * 1.5)
        guests.on_costs({"total_ms": "nonsense"})
        assert targets.measured.moves == 1
        await keeper.die()
        await until(lambda: not guests.links)

    asyncio.run(main())


def test_a_guest_that_came_home_is_one_row(run_dir: Path) -> None:
    async def main() -> None:
        guests = Guests(lambda: NodeInfo(1, "n1", "127.0.0.1"), lambda e: None, lambda: None)
        both = [
            FakeAgent(paths.AGENTS / "100.sock", row(100, where="n1")),
            FakeAgent(paths.KEEPERS / "1-100-3.sock", row(100, "keeper", where="n1")),
        ]
        guests.look()
        await until(lambda: len([x for x in guests.links.values() if x.state]) == 2)
        assert [r.role for r in guests.rows()] == ["agent"] and guests.hosted() == 0
        for a in both:
            await a.die()
        await until(lambda: not guests.links)

    asyncio.run(main())


def test_a_socket_that_nobody_serves_goes_away(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omdiscd.guests._STALE", 0.0)

    async def main() -> None:
        guests = Guests(lambda: NodeInfo(1, "n1", "127.0.0.1"), lambda e: None, lambda: None)
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(paths.AGENTS / "5.sock"))
        for _ in range(2):
            guests.look()
            await asyncio.sleep(0.01)
        assert not (paths.AGENTS / "5.sock").exists()

    asyncio.run(main())


def test_permission_is_that_of_kill() -> None:
    from omdiscd.moves import Mover, Subject

    s = Subject(9, (1000, 1001), "awk", "n1", "n1")
    for uid in (0, 1000, 1001):
        Mover.permit(s, uid)
    with pytest.raises(NotPermitted):
        Mover.permit(s, 1002)
