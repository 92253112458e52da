"""A process that does what its tests tell it: a line of Python (as JSON) on stdin, the result's repr or the error on stdout."""

import ctypes
import fcntl
import json
import mmap
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
import time

OFFERED = (ctypes, fcntl, mmap, select, signal, socket, stat, subprocess, threading, time)
"""For the lines that tests send."""


def serve() -> None:
    """Until the end of the input."""
    names = dict(globals())
    while line := sys.stdin.readline():
        kind, text = json.loads(line)
        try:
            answer = [True, repr(eval(text, names)) if kind == "ask" else exec(text, names)]
        except Exception as e:
            answer = [False, f"{type(e).__name__}: {e}"]
        os.write(1, json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    serve()
