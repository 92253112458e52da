"""The demonstration's program at a terminal: counts primes, prints a line for each block of numbers, appends it to a log.

It knows nothing of openMosix and uses only the standard library.  Called as ``primes.py LOG BLOCKS SIZE``; ends with status 42, so that
one can see whose exit status arrives.
"""

import socket
import sys

FIRST = 1_000_000_001


def is_prime(n: int) -> bool:
    """Trial division, for odd ``n``: slow on purpose."""
    d = 3
    while d * d <= n:
        if n % d == 0:
            return False
        d += 2
    return True


def main(log_name: str, blocks: int, size: int) -> int:
    """Count in ``blocks`` blocks of ``size`` numbers."""
    with open(log_name, "a") as log:
        for block in range(blocks):
            start = FIRST + block * size
            found = sum(is_prime(n) for n in range(start | 1, start + size, 2))
            # asked anew each time: what does the program think where it is?
            line = f"{socket.gethostname()}: block {block + 1} of {blocks}, {found} primes above {start - 1}"
            print(line, flush=True)
            print(line, file=log, flush=True)
    return 42


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
