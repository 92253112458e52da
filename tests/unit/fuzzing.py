"""A small coverage-guided fuzzer: what reaches lines of the watched modules in a new order is kept and changed further.

Coverage are pairs of lines that follow each other within one call.  Inputs are bytes; every second change is one of the msgpack value that
they are, if they are one, so that checksums of structure (lengths, types) do not stop it.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Sequence
from types import FrameType, ModuleType
from typing import Any

import msgpack

Edge = tuple[str, int, int]
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 127, 255, 256, 0xFFFF, 0x10000, (1 << 31) - 1, 1 << 31, 1 << 32, (1 << 62) - 1, 1 << 62, (1 << 63) - 1,
    (1 << 64) - 1, -(1 << 63), 0.5, 1e300, float("inf"), float("nan"), "", "x", "x" * 600, b"", b"\0" * 13, b"\xff" * 26, [], {}, [0] * 4,
    [[]] * 3, {"a": 1},
)  # fmt: skip
_LONGEST = 4096


def change(chance: random.Random, b: bytearray, corpus: Sequence[bytes] = ()) -> None:
    """One change: a bit, a byte, a piece left out, put in, doubled, or taken from another of the ``corpus``, or the end cut off."""
    at = chance.randrange(len(b) + 1)
    match chance.randrange(7):
        case 0 if at < len(b):
            b[at] ^= 1 << chance.randrange(8)
        case 1 if at < len(b):
            b[at] = chance.randrange(256)
        case 2:
            del b[at : at + chance.randrange(1, 9)]
        case 3:
            b[at:at] = chance.randbytes(chance.randrange(1, 9))
        case 4:
            b[at:at] = b[: chance.randrange(40)]
        case 5 if corpus:
            b[at:] = chance.choice(corpus)[at:]
        case _:
            del b[at:]


class Fuzzer:
    """Changes what it has of ``corpus``, runs ``target`` with it, and keeps what reached something new.

    Whatever ``target`` raises is an error in it: an :class:`AssertionError` with the input is raised then.
    """

    def __init__(self, target: Callable[[bytes], None], watched: Iterable[ModuleType], corpus: Iterable[bytes], seed: int) -> None:
        self._target = target
        self._files = frozenset(str(m.__file__) for m in watched)
        self._chance = random.Random(seed)
        self.seen: set[Edge] = set()
        self.corpus: list[bytes] = []
        self.runs = 0
        for data in corpus:
            self.run(data)

    def run(self, data: bytes) -> bool:
        """Run one input; whether it was kept."""
        self.runs += 1
        edges = self._traced(data)
        if edges <= self.seen:
            return False
        self.seen |= edges
        self.corpus.append(data)
        return True

    def go(self, runs: int) -> None:
        """So many more runs."""
        for _ in range(runs):
            # what was found last leads on most often
            young = self._chance.random() < 0.5
            self.run(self._changed(self._chance.choice(self.corpus[-8:] if young else self.corpus)))

    def _traced(self, data: bytes) -> set[Edge]:
        edges: set[Edge] = set()
        files = self._files

        def local(last: int, name: str) -> Callable[[FrameType, str, Any], Any]:
            def trace(frame: FrameType, event: str, _: Any) -> Any:
                nonlocal last
                if event in ("line", "return"):
                    edges.add((name, last, frame.f_lineno))
                    last = frame.f_lineno
                return trace

            return trace

        def called(frame: FrameType, event: str, _: Any) -> Any:
            name = frame.f_code.co_filename
            return local(-frame.f_code.co_firstlineno, name) if name in files else None

        before = sys.gettrace()
        sys.settrace(called)
        try:
            self._target(data)
        except Exception as e:
            raise AssertionError(f"{type(e).__name__}: {e}; the input was bytes.fromhex({data.hex()!r})") from e
        finally:
            sys.settrace(before)
        return edges

    def _changed(self, data: bytes) -> bytes:
        for _ in range(self._chance.randint(1, 4)):
            data = self._otherwise(data) if self._chance.random() < 0.5 else self._bytes(data)
        return data[:_LONGEST]

    def _otherwise(self, data: bytes) -> bytes:
        """The msgpack value with one part of it changed."""
        try:
            value = msgpack.unpackb(data, strict_map_key=False)
            other = msgpack.unpackb(self._chance.choice(self.corpus), strict_map_key=False)
        except Exception:
            return self._bytes(data)
        holder: list[Any] = [value]
        places: list[tuple[Any, Any]] = [(holder, 0)]
        for at, key in places:
            inner = at[key]
            if isinstance(inner, list):
                places += [(inner, i) for i in range(len(inner))]
            elif isinstance(inner, dict):
                places += [(inner, k) for k in inner]
        at, key = self._chance.choice(places)
        match self._chance.randrange(6):
            case 0:
                at[key] = self._chance.choice(ODD)
            case 1 if type(at[key]) is int:
                at[key] += self._chance.choice((-1, 1, self._chance.randrange(-70000, 70000)))
            case 2 if isinstance(at[key], bytes):
                at[key] = self._bytes(at[key])
            case 3 if isinstance(at, list) and at is not holder:
                at.insert(key, at[key])
            case 4 if at is not holder:
                del at[key]
            case _:
                if isinstance(value, dict) and isinstance(other, dict) and other:
                    k = self._chance.choice(list(other))
                    value[k] = other[k]
        try:
            return bytes(msgpack.packb(holder[0]))
        except (OverflowError, ValueError, TypeError, RecursionError):
            return data

    def _bytes(self, data: bytes) -> bytes:
        b = bytearray(data)
        change(self._chance, b, self.corpus)
        return bytes(b)
