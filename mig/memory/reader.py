"""Reading a running process's memory in large pieces."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator

from mig.kernel.libc import _Iovec
from mig.kernel.libc import _libc as libc
from mig.memory.frames import PAGE

BATCH = 256 << 10
"""Bytes read from the process at a time: the unit of packing."""
PIECES = 256
"""Ranges read at a time (IOV_MAX is 1024)."""


class Reader:
    """One buffer of :data:`BATCH` bytes.  One thread at a time."""

    def __init__(self) -> None:
        self._buffer = (ctypes.c_char * BATCH)()
        self._view = memoryview(self._buffer).cast("B")

    def read(self, pid: int, batch: list[tuple[int, int]]) -> Iterator[tuple[int, memoryview]]:
        """Address and contents of each range of a batch; valid until the next call.  What is unmapped meanwhile is left out."""
        total = sum(end - start for start, end in batch)
        if not total:
            return
        local = _Iovec(ctypes.addressof(self._buffer), BATCH)
        remote = (_Iovec * len(batch))(*[_Iovec(start, end - start) for start, end in batch])
        n = libc.process_vm_readv(pid, ctypes.addressof(local), 1, ctypes.addressof(remote), len(batch), 0)
        left, at = max(n, 0) // PAGE * PAGE, 0
        for start, end in batch:
            length = min(end - start, left)
            if length <= 0:
                return
            yield start, self._view[at : at + length]
            left, at = left - length, at + length


def batches(ranges: Iterable[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """The ranges in order, cut into lists of :data:`BATCH` bytes and :data:`PIECES` ranges at the most."""
    out: list[tuple[int, int]] = []
    left = BATCH
    for start, end in ranges:
        while start < end:
            n = min(end - start, left)
            out.append((start, start + n))
            start, left = start + n, left - n
            if not left or len(out) == PIECES:
                yield out
                out, left = [], BATCH
    if out:
        yield out
