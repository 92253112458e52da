"""The fuzzer (tests/unit/fuzzing.py) on everything that reads what comes from another node or a local client.

The corpus (fuzz_corpus.json) is what earlier runs have found, so that each run of the tests goes where they got;
``FUZZ_KEEP=1 pytest -m long tests/unit/test_fuzz.py`` writes it anew.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import msgpack
import pytest
from nacl.secret import SecretBox
from omdiscd import control, seal

from mig import model, paths
from mig import wire as messages
from mig.channels import frames
from mig.errors import BadInput
from mig.model import NodeInfo
from mig.pool import loads, members, message, pool, probes, repair, rumors, suspicion, table, wanted, wire
from mig.pool.message import HELLO, NEWS, PING, Digest, Load, Message, Rumor, Sample
from mig.pool.timing import Timing
from tests.unit.fuzzing import Fuzzer

CORPUS = Path(__file__).with_name("fuzz_corpus.json")
KEY = bytes(range(32))
RUNS = 60_000
"""Of each target in a long run."""


def node(i: int) -> NodeInfo:
    addr = f"10.0.0.{i}"
    return NodeInfo(i, f"node{i}", addr, 7230, incarnation=1_700_000_000_000, boot="b", cpus=4.0, version="1", fingerprint="f" * 32)


def packed(m: Message) -> bytes:
    return bytes(msgpack.packb({**wire.encode(m), "f": m.sender}))


# -- targets ----------------------------------------------------------------------------------------------------------------------


class Member:
    """A node among others, to which a holder of the key says anything; it lives for many messages, so that they meet every state."""

    def __init__(self) -> None:
        self.began = 0
        self.renew()

    def renew(self) -> None:
        self.now, self.count = 1000.0, 0
        self.pool = pool.Pool(node(1), [("10.0.0.2", 7230)], Timing(), random.Random(1), self.now)
        for i in range(2, 6):
            self.pool.datagram(self.now, (f"10.0.0.{i}", 7230), Message(HELLO, i, records=[node(i)]))

    def __call__(self, data: bytes) -> None:
        if self.count == 200:
            self.renew()
        self.count += 1
        try:
            body = msgpack.unpackb(data, strict_map_key=False)
        except Exception:  # what the seal refuses: see `sealed`
            return
        try:
            m = wire.decode(body) if isinstance(body, dict) else None
        except ValueError:
            return
        if m is None:
            return
        self.now += 0.37
        outs = [self.pool.datagram(self.now, ("10.0.0.9", 7230), m, group=bool(self.count % 2)), self.pool.tick(self.now, node(1))]
        for k in outs[1].knocks:
            outs.append(self.pool.knocked(self.now, k.node, bool(self.count % 3)))
        for out in outs:
            for s in out.sends:
                assert len(msgpack.packb(wire.encode(s.message))) <= wire.size(s.message) <= wire.BUDGET
        assert len(self.pool.nodes(self.now)) <= 5 + self.count * 60
        assert len(self.pool.members.wanted) <= 4096
        assert self.pool.due() < self.now + 3700


GENUINE = seal.Seal(KEY, 2, 1).seal({"x": 1})


def sealed(data: bytes) -> None:
    """Without the key, and with it."""
    receiver = seal.Seal([KEY, bytes(32)], 1, 1)
    for datagram in (data, seal.MAGIC + bytes(SecretBox(KEY).encrypt(data))):
        try:
            m = receiver.open(datagram)
        except seal.SealError:
            continue
        assert all(type(m[k]) is int for k in "fic")
        assert datagram is not data or data == GENUINE, "opened without the key"


async def _nothing(_: control.Call) -> dict[str, Any]:
    return {}


SERVER = control.Control(paths.CONTROL, {"status": _nothing, "migrate": _nothing})


def request(data: bytes) -> None:
    """A local client's message."""
    call = control.Call(SERVER, b"", {}, control.Caller(0, 0, 0))
    try:
        SERVER._handler(call, data)
    except BadInput:
        return
    assert call.request["op"] in SERVER.handlers


def between(data: bytes) -> None:
    """A message between nodes, and the records in it."""
    try:
        m = messages.unpack(data)
    except messages.WireError:
        return
    for kind in (NodeInfo, model.ProcessFacts):
        try:
            kind.from_map(m)
        except (ValueError, TypeError, KeyError):  # what omdiscd.peers takes for a question that makes no sense
            continue


def framed(data: bytes) -> None:
    """What a channel carries, in pieces of odd lengths."""
    decoder = frames.Decoder()
    try:
        for at in range(0, len(data), 7):
            decoder.feed(data[at : at + 7])
    except frames.FrameError:
        pass


MEMBER = [
    packed(Message(NEWS, 2, rumors=[Rumor(3, 1_700_000_000_000, s, 2) for s in range(5)], urgent=True)),
    packed(Message(NEWS, 3, loads=[(2, [Sample(4, 7, Load(0.5, 1 << 30))]), (9, [Sample(5, 8, Load(2.5, 1 << 20))])], wants=[1, 2, 9])),
    packed(Message(HELLO, 9, records=[node(9)])), packed(Message(PING, 4, 7)), packed(Message(message.ASK, 5, 8, 3)),
    packed(Message(message.ACK, 2, 1, 3)), packed(Message(message.NACK, 2, 1, 3)),
    packed(Message(message.REPAIR, 2, digest=Digest(4, 0, (1, 2, 3, 4)))),
    packed(Message(NEWS, 2, records=[dataclasses.replace(node(1), addr="10.0.0.7", boot="c"), dataclasses.replace(node(3), state="left")])),
]  # fmt: skip
FACTS = "pid start uid gid ppid pgid sid tty_nr tpgid"
POOL = (loads, members, pool, probes, repair, rumors, suspicion, table, wanted, wire)
TARGETS: dict[str, tuple[Callable[[], Callable[[bytes], None]], tuple[ModuleType, ...], list[bytes]]] = {
    "member": (Member, POOL, MEMBER),
    "sealed": (lambda: sealed, (seal,), [bytes(msgpack.packb({"f": 2, "i": 3, "c": 4})), GENUINE]),
    "request": (lambda: request, (control, messages), [bytes(msgpack.packb({"v": 1, "id": 1, "op": "status"}))]),
    "between": (
        lambda: between, (messages, model),
        [bytes(msgpack.packb({"v": 1, "op": "prepare", **dataclasses.asdict(node(2))})),
         bytes(msgpack.packb({**dict.fromkeys(FACTS.split(), 1), "boot": "b", "comm": "c", "tree": [1], "tids": [1], "externals": []}))],
    ),
    "framed": (lambda: framed, (frames,), [bytes(40), b"\0\0\0\5hello", b"\5\0\0\0hello\1\0\0\0x"]),
}  # fmt: skip


def corpus(name: str) -> list[bytes]:
    kept = json.loads(CORPUS.read_text()) if CORPUS.exists() else {}
    return TARGETS[name][2] + [bytes.fromhex(h) for h in kept.get(name, [])]


@pytest.mark.parametrize("name", TARGETS)
def test_a_little(name: str) -> None:
    make, watched, _ = TARGETS[name]
    f = Fuzzer(make(), watched, corpus(name), 1)
    f.go(300)
    assert f.seen


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", TARGETS)
def test_much(name: str) -> None:
    make, watched, own = TARGETS[name]
    f = Fuzzer(make(), watched, corpus(name), random.randrange(1 << 32))
    known = len(f.seen)
    f.go(RUNS)
    print(f"{name}: {f.runs} runs, {len(f.seen)} pairs of lines, {len(f.seen) - known} of them new, {len(f.corpus)} inputs kept")
    if os.environ.get("FUZZ_KEEP"):
        kept = json.loads(CORPUS.read_text()) if CORPUS.exists() else {}
        kept[name] = [d.hex() for d in f.corpus if d not in own and len(d) <= 1400][:150]
        CORPUS.write_text(json.dumps(kept, indent=0, sort_keys=True) + "\n")


# -- the fuzzer itself --------------------------------------------------------------------------------------------------------------


def locked(data: bytes) -> None:
    """A mistake behind four doors."""
    for at, wanted_byte in enumerate(b"key!"):
        if data[at : at + 1] != bytes([wanted_byte]):
            return
        DOORS[at]()
    raise LookupError("found")


def first() -> None: ...
def second() -> None: ...
def third() -> None: ...
def fourth() -> None: ...


DOORS = (first, second, third, fourth)


def test_it_finds_what_chance_alone_does_not() -> None:
    here = sys.modules[__name__]
    with pytest.raises(AssertionError, match="LookupError: found; the input was"):
        Fuzzer(locked, [here], [b"????"], 1).go(100_000)
    blind = Fuzzer(locked, [], [b"????"], 1)
    blind.corpus = [b"????"]
    blind.go(100_000)
