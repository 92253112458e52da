"""Our page of ZMTP against the real thing: a libzmq ROUTER."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest
import zmq
from omtools.client import Client, Lost

from mig.errors import CannotMove, MigError, NoDaemon


class Router:
    """Answers every request with the given replies, and keeps what it was asked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked: list[dict[str, object]] = []
        self.credentials = ""
        self.replies: list[dict[str, object]] = [{"ok": True, "more": False}]
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.HEARTBEAT_IVL, 20)  # so that PING is met too
        self._socket.bind(f"ipc://{path}")
        self._stop = self._context.socket(zmq.PAIR)
        self._stop.bind("inproc://stop")
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        end = self._context.socket(zmq.PAIR)
        end.connect("inproc://stop")
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(end, zmq.POLLIN)
        while end not in dict(poller.poll()):
            identity, frame = self._socket.recv_multipart(copy=False)
            self.credentials = str(frame.get("Peer-Address"))
            request = msgpack.unpackb(frame.bytes)
            self.asked.append(request)
            for r in self.replies:
                self._socket.send_multipart([identity.bytes, msgpack.packb({"v": 1, "id": request["id"]} | r)])
        end.close()

    def close(self) -> None:
        self._stop.send(b"")
        self._thread.join()
        self._stop.close()
        self._socket.close()
        self._context.term()


@pytest.fixture
def router(tmp_path: Path) -> Iterator[Router]:
    r = Router(tmp_path / "control.sock")
    yield r
    r.close()


def test_a_call_and_its_answer(router: Router) -> None:
    router.replies = [{"ok": True, "more": False, "nodes": ["n1"], "self": "n1"}]
    with Client(router.path) as c:
        answer = c.call("status", node="n1", timeout=3)
        assert answer["nodes"] == ["n1"]
        assert c.call("guests", all=True)["id"] == 2
    assert router.asked == [{"v": 1, "id": 1, "op": "status", "node": "n1", "timeout": 3}, {"v": 1, "id": 2, "op": "guests", "all": True}]


def test_the_daemon_learns_from_the_kernel_who_we_are(router: Router) -> None:
    with Client(router.path) as c:
        c.call("status")
    assert router.credentials == f"localhost:{os.getuid()}:{os.getgid()}:{os.getpid()}"


def test_long_messages_in_both_directions(router: Router) -> None:
    router.replies = [{"ok": True, "more": False, "text": "x" * 300_000}]
    with Client(router.path) as c:
        assert c.call("status", blob=b"y" * 100_000)["text"] == "x" * 300_000
    assert router.asked[0]["blob"] == b"y" * 100_000


def test_a_stream_of_items_and_the_answer(router: Router) -> None:
    router.replies = [{"ok": True, "more": True, "step": s} for s in "abc"] + [{"ok": True, "more": False, "result": 1}]
    with Client(router.path) as c:
        items = [i for i in c.stream("migrate", tick=10) if i]
    assert [i.get("step") for i in items] == ["a", "b", "c", None]


def test_ticks_while_nothing_comes_and_pings_are_answered(router: Router) -> None:
    router.replies = []
    with Client(router.path) as c:
        assert next(c.stream("migrate", tick=0.06)) is None
        router.replies = [{"ok": True, "more": False}]
        assert c.call("status")["ok"]


def test_what_is_left_of_an_earlier_stream_is_skipped(router: Router) -> None:
    router.replies = [{"ok": True, "more": True}, {"ok": True, "more": False, "old": True}]
    with Client(router.path) as c:
        assert next(c.stream("events"))
        router.replies = [{"ok": True, "more": False, "old": False}]
        assert c.call("status")["old"] is False


def test_the_daemons_error_is_raised_as_it_was(router: Router) -> None:
    router.replies = [{"ok": False, "more": False, "error": CannotMove("no", reasons=["a", "b"], hint="h").to_wire()}]
    with Client(router.path) as c, pytest.raises(CannotMove) as e:
        c.call("migrate")
    assert e.value.lines() == ["no", "  - a", "  - b", "  (h)"]


def test_an_answer_without_ok_is_an_error(router: Router) -> None:
    router.replies = [{"more": False}]
    with Client(router.path) as c, pytest.raises(MigError, match="unknown error"):
        c.call("status")


def test_a_silent_daemon(router: Router) -> None:
    router.replies = []
    with Client(router.path) as c, pytest.raises(NoDaemon, match="did not answer"):
        c.call("status", wait=0.05)


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(NoDaemon, match="is not running"):
        Client(tmp_path / "none")
    stale = tmp_path / "stale"
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(stale))
    with pytest.raises(NoDaemon, match="is not running"):
        Client(stale)


def test_a_stopped_daemon_is_noticed(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(tmp_path / "s"))
        s.listen()
        with pytest.raises(NoDaemon, match="does not answer") as e:
            Client(tmp_path / "s", timeout=0.05)
        assert "stopped" in e.value.hint and "start it" not in e.value.hint


def test_something_else_on_the_socket(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(tmp_path / "s"))
        s.listen()
        answers = threading.Thread(target=lambda: _reply(s, b"HTTP/1.1 400 Bad Request\r\n" * 9))
        answers.start()
        with pytest.raises(NoDaemon):
            Client(tmp_path / "s")
        answers.join()


def _reply(server: socket.socket, data: bytes) -> None:
    c, _ = server.accept()
    with c:
        c.sendall(data)
        c.recv(100)


def test_a_daemon_that_goes_away(tmp_path: Path) -> None:
    r = Router(tmp_path / "control.sock")
    r.replies = []
    c = Client(r.path)
    r.close()
    with c, pytest.raises(Lost):
        list(c.stream("migrate", wait=5))
