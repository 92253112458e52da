"""block.py MIB FILE: MIB of random memory, verified over and over; FILE gets a line of rounds, and ``BAD`` for anything wrong."""

import hashlib
import os
import sys
import time

MIB = 1 << 20
count = int(sys.argv[1])
memory = bytearray(MIB * count)
sums = []
for i in range(count):
    memory[i * MIB : (i + 1) * MIB] = os.urandom(MIB)
    sums.append(hashlib.md5(memoryview(memory)[i * MIB : (i + 1) * MIB]).digest())
rounds = 0
with open(sys.argv[2], "w") as f:
    while True:
        for i in range(count):
            if hashlib.md5(memoryview(memory)[i * MIB : (i + 1) * MIB]).digest() != sums[i]:
                f.write(f"BAD {i}\n")
                f.flush()  # it may be ended before the round is over
        rounds += 1
        f.write(f"{rounds}\n")
        f.flush()
        time.sleep(0.005)
