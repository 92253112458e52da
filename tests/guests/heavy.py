"""As count.py, holding memory that does not compress: heavy.py MIB INTERVAL FILE"""

import os
import sys
import time

data = os.urandom(int(sys.argv[1]) << 20)
print("pid", os.getpid(), flush=True)
i = 0
while not os.path.exists(sys.argv[3]):
    print(i, flush=True)
    i += 1
    time.sleep(float(sys.argv[2]))
    assert data[i % len(data)] >= 0
