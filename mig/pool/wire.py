"""The form of a datagram: a msgpack map with short keys, below the seal.  Append-only: numbers and positions keep their meaning for ever.

key  meaning                                          key  meaning
v    version spoken (:data:`SPEAKS`)                  r    rumours, four numbers each, in one flat list
t    kind                                             z l  length of one load entry; all of them in one string
n    number of a probe                                m    records: lists of values in the order of ``RECORD``
s    subject of a probe                               w    ids of wanted records
u    1: urgent                                        d    digest: buckets, first, sums of 4 bytes each in one string

Keys that are unknown are ignored, as are values at the end of a record and bytes at the end of a load entry: a newer node may append.
What an older node leaves out has its default.  Version 2 is the first that was released with this form; a datagram of an older one
(version 1 had no ``v``) is refused.
"""

from __future__ import annotations

import math
import struct
from typing import Any

from mig.model import NodeInfo
from mig.pool.message import STALLED, Digest, Group, Load, Message, Rumor, Sample

SPEAKS = 2
OLDEST = 2
"""The oldest version that we understand."""
BUDGET = 1310
"""Bytes of a packed message; with sender, incarnation, counter and seal a datagram stays below 1400."""
FRAME = 24
"""Bytes of ``v``, ``t``, ``n``, ``s``, ``u`` and the map itself."""
_KEY = 5
"""Bytes of a key with the length of what follows."""

RECORD: tuple[tuple[str, type[Any]], ...] = (
    ("id", int), ("name", str), ("addr", str), ("port", int), ("incarnation", int), ("boot", str), ("speed", float), ("cpus", float),
    ("mem_total", int), ("why_not", str), ("version", str), ("fingerprint", str), ("kernel", str), ("criu", str), ("cpu", str),
    ("swap_total", int), ("state", str), ("steps", bool),
)  # fmt: skip
"""Fields of a record in their order; new ones at the end."""
_NEEDED = 5
_TEXT = 120
"""Characters of a text in a record; what is longer is cut."""
_RUMOR_MOST = 16
_LOAD = struct.Struct("<HHBeHHBBB")
_MEMORY_STEP = 1024.0
_ID = 0xFFFF


def encode(m: Message) -> dict[str, Any]:
    """The map to seal."""
    body: dict[str, Any] = {"v": SPEAKS, "t": m.kind}
    if m.number:
        body["n"] = m.number
    if m.subject:
        body["s"] = m.subject
    if m.urgent:
        body["u"] = 1
    if m.rumors:
        body["r"] = [n for r in m.rumors for n in r]
    if m.loads:
        body["z"], body["l"] = _LOAD.size, b"".join(_pack_load(age, s) for age, samples in m.loads for s in samples)
    if m.records:
        body["m"] = [_pack_record(r) for r in m.records]
    if m.wants:
        body["w"] = m.wants
    if m.digest:
        body["d"] = [m.digest.buckets, m.digest.first, struct.pack(f"<{len(m.digest.sums)}I", *m.digest.sums)]
    return body


def decode(body: dict[str, Any]) -> Message:
    """The message in an opened map; raises ``ValueError`` when it makes no sense or is of a version that we do not understand."""
    version = body.get("v")
    if type(version) is not int or version < OLDEST:
        raise ValueError(f"version {version if version is not None else 1} of the gossip is too old: update omdiscd there")
    m = Message(_number(body, "t"), _number(body, "f"), _number(body, "n"), _number(body, "s"), bool(body.get("u")))
    if not 0 < m.sender <= _ID:
        raise ValueError("no sender")
    m.rumors = _rumors(body.get("r") or [])
    m.loads = _loads(body.get("z"), body.get("l") or b"")
    records = body.get("m") or []
    m.records = [_record(r) for r in _list(records)]
    m.wants = _list(body.get("w") or [])
    if not all(type(i) is int and 0 < i <= _ID for i in m.wants):
        raise ValueError("wanted ids that are none")
    if body.get("d"):
        m.digest = _digest(body["d"])
    return m


def size(m: Message) -> int:
    """Upper bound of the packed length, quickly: what the simulator counts, and what fits."""
    n = FRAME + 5 * _KEY + _RUMOR_MOST * len(m.rumors) + 3 * len(m.wants)
    for _, samples in m.loads:
        n += _LOAD.size * len(samples)
    for r in m.records:
        n += record_size(r)
    return n + 16 + 4 * len(m.digest.sums) if m.digest else n


def rumors_that_fit(m: Message) -> int:
    """How many more rumours have room."""
    return (BUDGET - size(m)) // _RUMOR_MOST


def loads_that_fit(m: Message) -> int:
    """How many load entries have room."""
    return (BUDGET - size(m)) // _LOAD.size


def record_size(r: NodeInfo) -> int:
    """Upper bound of the packed length of a record."""
    texts = (r.name, r.addr, r.boot, r.why_not, r.version, r.fingerprint, r.kernel, r.criu, r.cpu, r.state)
    return 76 + 2 * len(texts) + len("".join([t[:_TEXT] for t in texts]).encode())


def all_fit(nodes: int) -> bool:
    """Whether the loads of so many nodes fit into one datagram beside a few rumours."""
    return nodes * _LOAD.size + FRAME + 5 * _KEY + 3 * _RUMOR_MOST <= BUDGET


def _pack_load(age: int, s: Sample) -> bytes:
    x = s.load
    load, guests = min(max(x.load, 0.0), 65000.0), min(x.guests, 0xFFFF)
    return _LOAD.pack(s.id, s.number, min(age, 255), load, _pack_memory(x.mem_free), guests, x.flags & 255, x.psi_cpu, x.psi_mem)


def _pack_memory(n: int) -> int:
    """Bytes as a logarithm in 16 bits: within 0.04 %, up to 16 EiB."""
    return min(round(math.log2(n) * _MEMORY_STEP), 0xFFFF) if n > 0 else 0


def _unpack_memory(x: int) -> int:
    return round(2 ** (x / _MEMORY_STEP)) if x else 0


def _loads(step: Any, packed: Any) -> list[Group]:
    if not packed:
        return []
    if not isinstance(packed, bytes) or type(step) is not int or step < _LOAD.size or len(packed) % step:
        raise ValueError("load entries of a length that is none")
    out: list[Group] = []
    for at in range(0, len(packed), step):
        i, number, age, load, memory, guests, flags, cpu, mem = _LOAD.unpack_from(packed, at)
        if not i or not 0 <= load < 65001:
            raise ValueError("a load entry that is none")
        if not out or out[-1][0] != age:
            out.append((age, []))
        out[-1][1].append(Sample(i, number, Load(load, _unpack_memory(memory), guests, flags, cpu, mem)))
    return out


def _rumors(flat: Any) -> list[Rumor]:
    _list(flat)
    if len(flat) % 4 or not all(type(n) is int and 0 <= n < 1 << 62 for n in flat):
        raise ValueError("rumours that are none")
    out = [Rumor(*flat[at : at + 4]) for at in range(0, len(flat), 4)]
    if not all(0 < r.id <= _ID and r.by <= _ID for r in out):
        raise ValueError("a rumour about nobody")
    return [r for r in out if r.state <= STALLED]  # a newer node may know more states


def _pack_record(r: NodeInfo) -> list[Any]:
    def short(v: Any) -> Any:
        return v[:_TEXT] if isinstance(v, str) else round(v, 3) if isinstance(v, float) else v

    return [short(getattr(r, name)) for name, _ in RECORD]


def _record(raw: Any) -> NodeInfo:
    if len(_list(raw)) < _NEEDED:
        raise ValueError("a record is too short")
    values: dict[str, Any] = {}
    for (name, kind), v in zip(RECORD, raw, strict=False):
        if kind is float and type(v) is int:
            v = float(v)
        if type(v) is not kind or (kind is float and not math.isfinite(v)) or (kind is str and len(v) > 4 * _TEXT):
            raise ValueError(f"{name} of a record is {type(v).__name__}")
        values[name] = v
    r = NodeInfo(**values)
    if not 0 < r.id <= _ID or not 0 < r.port <= 0xFFFF or r.incarnation < 0:
        raise ValueError("a record of nobody")
    return r


def _digest(raw: Any) -> Digest:
    if len(_list(raw)) < 3:
        raise ValueError("a digest is too short")
    buckets, first, sums = raw[:3]
    if type(buckets) is not int or type(first) is not int or not isinstance(sums, bytes) or len(sums) % 4:
        raise ValueError("a digest that is none")
    if not 0 < buckets <= _ID + 1 or not 0 <= first <= buckets - len(sums) // 4:
        raise ValueError("a digest of buckets that do not exist")
    return Digest(buckets, first, struct.unpack(f"<{len(sums) // 4}I", sums))


def _list(v: Any) -> list[Any]:
    if not isinstance(v, list):
        raise ValueError("a list is missing")
    return v


def _number(body: dict[str, Any], key: str) -> int:
    v = body.get(key, 0)
    if type(v) is not int or not 0 <= v < 1 << 32:
        raise ValueError(f"{key} is not a number")
    return v
