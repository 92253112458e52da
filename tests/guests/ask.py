"""Talk with a terminal.  ask.py lines|passwords|keys|size|names"""

import getpass
import os
import signal
import sys
import termios
import time
import tty


def lines() -> int:
    while line := sys.stdin.readline():
        print("got", repr(line.rstrip("\n")), flush=True)
    print("end", flush=True)
    return 7


def passwords() -> int:
    for i in (1, 2):
        word = getpass.getpass(f"Password {i}: ")
        print("length", len(word), "sum", sum(word.encode()), flush=True)
    return 0


def keys() -> int:
    before = termios.tcgetattr(0)
    tty.setraw(0)
    os.write(1, f"pid {os.getpid()}\r\n".encode())
    byte = b""
    while byte != b"q":
        byte = os.read(0, 1)
        os.write(1, f"<{byte.hex()}>".encode())
    termios.tcsetattr(0, termios.TCSADRAIN, before)
    return 0


def size() -> int:
    def show(*_: object) -> None:
        columns, rows = os.get_terminal_size(0)
        print(f"size {rows}x{columns}", flush=True)

    signal.signal(signal.SIGWINCH, show)
    signal.signal(signal.SIGCONT, show)
    show()
    while True:
        time.sleep(0.05)  # not pause(): a guest that is stopped in a call finds itself before that call when it is continued elsewhere


def names() -> int:
    while line := sys.stdin.readline():
        name = os.ttyname(0)
        with open(name, "w") as a, open("/dev/tty", "w") as b:
            print(f"{line.rstrip()}: {name} {os.ttyname(1)}", end=" ", file=a, flush=True)
            print("by name,", end=" ", file=a, flush=True)
            print("by /dev/tty", file=b, flush=True)
    return 0


if __name__ == "__main__":
    if sys.argv[1] != "keys":
        print("pid", os.getpid(), flush=True)
    sys.exit(globals()[sys.argv[1]]())
