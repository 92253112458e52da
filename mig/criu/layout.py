"""The self-contained CRIU that ``make env`` puts under ``libexec/criu``, and its Python side (pycriu).

The directory holds the program, its own dynamic loader and every library that it needs, so that the same files run on this machine,
in a lab node and inside a cell whose root is another machine's: nothing is looked up outside the directory.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import os
import sys
import types
from typing import Any

from mig import paths

CELL_BASE = "/.cell/criu"
"""Where a cell sees the directory."""
CAP_SYS_RESOURCE = 24


def base() -> str:
    """The directory of CRIU outside of cells."""
    return str(paths.libexec() / "criu")


def command(directory: str | None = None, *, shim: bool = False) -> list[str]:
    """How to start CRIU from ``directory`` (default :func:`base`); append its arguments.

    ``shim`` preloads ``shim.so``, needed to dump another user's process without CAP_SYS_RESOURCE (see :func:`needs_shim`).
    """
    d = directory or base()
    preload = ["--preload", f"{d}/shim.so"] if shim else []
    return [f"{d}/ld.so", "--library-path", f"{d}/lib", *preload, f"{d}/criu"]


NO_BREAKPOINTS = {"CRIU_FAULT": "130"}
"""For the environment of a CRIU that dumps or restores: it finds the end of its own code in a process by a stop at each system call, of
which there are a few, and not by a hardware breakpoint.  The first of these on a machine makes the kernel wait until every CPU has passed
its scheduler (12 to 17 ms of a dump of 25, with the process frozen).  The name is that of its own tests (``FI_NO_BREAKPOINTS``, since
version 2); nothing else changes."""


def needs_shim() -> bool:
    """True where this process lacks CAP_SYS_RESOURCE, without which prlimit(2) on another user's process is EPERM."""
    with open("/proc/self/status") as f:
        caps = next(int(line.split()[1], 16) for line in f if line.startswith("CapEff:"))
    return not caps >> CAP_SYS_RESOURCE & 1


def shim_problem() -> str:
    """Why the shim cannot be used, ``""`` when it can: one of another version would let CRIU dump what it should leave out."""
    shim = os.path.join(base(), "shim.so")
    try:
        with open(shim, "rb") as f:
            compiled = f.read()
    except FileNotFoundError:
        return f"there is no {shim}"
    with open(os.path.join(os.path.dirname(__file__), "shim.c"), "rb") as f:
        source = hashlib.sha256(f.read()).hexdigest()
    return "" if f"mig-shim-source:{source}".encode() in compiled else f"{shim} was compiled for another version of mig"


@functools.cache
def _module(name: str) -> Any:
    # pycriu is on no package index: it comes with CRIU itself, so it is reached through CRIU's own directory.  Its packages stand here
    # without their own __init__, which import all of the hundred image modules (60 ms of CPU at the start of every helper) for one of them
    where = os.path.join(base(), "python")
    for package in ("pycriu", "pycriu.images"):
        if package not in sys.modules:
            bare = types.ModuleType(package)
            bare.__path__ = [os.path.join(where, *package.split("."))]
            sys.modules[package] = bare
    if (images := os.path.join(where, "pycriu", "images")) not in sys.path:
        sys.path.append(images)  # image modules import each other by their bare names
    return importlib.import_module(name)


def rpc() -> Any:
    """pycriu's ``rpc_pb2``: the messages of CRIU's RPC.  Raises ``ImportError`` where ``make env`` has not been run."""
    return _module("pycriu.rpc_pb2")


def image(name: str) -> Any:
    """pycriu's protobuf module of one kind of image, for instance ``image("core")``."""
    return _module(f"pycriu.images.{name}_pb2")


def magic(name: str) -> int:
    """The magic word of a kind of image, by CRIU's name for it."""
    return int(_module("pycriu.images.magic").by_name[name])
