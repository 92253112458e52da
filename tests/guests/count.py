"""Print own pid, then 0, 1, 2 … without a gap until a file appears; end with a status.  count.py INTERVAL STATUS FILE"""

import os
import sys
import time

interval, status, until = float(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
print("pid", os.getpid(), flush=True)
i = 0
while not os.path.exists(until):
    print(i, flush=True)
    i += 1
    time.sleep(interval)
sys.exit(status)
