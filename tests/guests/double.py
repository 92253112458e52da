"""Tell own pid on stderr; then write twice the number of each line, with a pause of so many seconds after each.  double.py PAUSE"""

import os
import sys
import time

print("pid", os.getpid(), file=sys.stderr, flush=True)
for line in sys.stdin:
    print(2 * int(line), flush=True)
    time.sleep(float(sys.argv[1]))
