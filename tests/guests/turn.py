"""One run of a job in a loop: turn.py DIRECTORY NAME.  It tells its pid in DIRECTORY/pid.NAME, waits for DIRECTORY/go, prints NAME."""

import os
import sys
import time

directory, name = sys.argv[1:]
with open(f"{directory}/new.{name}", "w") as f:
    f.write(str(os.getpid()))
os.rename(f"{directory}/new.{name}", f"{directory}/pid.{name}")
while not os.path.exists(f"{directory}/go.{name}"):
    time.sleep(0.02)
print("turn", name, flush=True)
