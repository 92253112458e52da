"""heap.py MIB FILE: as target.c, with a heap of Python objects, which compresses as such heaps do."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any


def main() -> None:
    """Fill, then look at the clock for ever, visiting an object now and then."""
    mib, path = int(sys.argv[1]), sys.argv[2]
    asked: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, _: asked.append(number))

    def note(line: str) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(fd, line.encode())
        os.close(fd)

    # about 560 bytes each
    objects: list[dict[str, Any]] = [
        {"id": i, "name": f"user {i}", "tags": ["a", "b", str(i * 7)], "v": i * 1.5} for i in range(mib * (1 << 20) // 560)
    ]
    note("ready\n")
    longest, steps, last = 0.0, 0, time.time()
    while True:
        steps += 1
        if objects[steps * 7919 % len(objects)]["v"] < 0:
            sys.exit(1)
        now = time.time()
        longest, last = max(longest, now - last), now
        if asked:
            asked.clear()
            note(f"steps {steps}\nlongest {longest * 1e3:.3f}\n")
            longest, last = 0.0, time.time()


main()
