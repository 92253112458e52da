"""Who this node is: an id that stays over restarts and changes of address, and which life of the node this is."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
from pathlib import Path

from mig import paths
from mig.kernel import pidfd, procfs

log = logging.getLogger(__name__)

_FILE = "node.json"


def boot() -> str:
    """Which life of this node it is: changes when the machine boots, and when the container that the node is in is started anew.

    Containers share the kernel's boot id, so the start time of their first process is part of it.
    """
    return hashlib.blake2s(f"{pidfd.boot_id()} {procfs.stat(1).start}".encode(), digest_size=8).hexdigest()


def from_address(addr: str) -> int:
    """An id from an address: the low 16 bits of IPv4, a checksum of IPv6; never 0."""
    if ":" in addr:
        return int.from_bytes(hashlib.blake2s(addr.encode(), digest_size=2).digest(), "big") or 1
    return int.from_bytes(socket.inet_aton(addr)[2:], "big") or 1


def stable(addr: str) -> int:
    """The id that this machine had before, else one from its address, which it then keeps when the address changes.

    What an earlier address gave is believed only on the machine that it was given to: a disk that was cloned together with its machine id
    is found out by :func:`forget`, when two nodes with one id meet.
    """
    derived = from_address(addr)
    try:
        kept = json.loads((paths.STATE / _FILE).read_text())
        if kept["machine"] == _machine() and 0 < int(kept["id"]) <= 0xFFFF:
            if kept["id"] != derived:
                log.info("this node keeps its id %d, which it got at the address %s; it is at %s now", kept["id"], kept["addr"], addr)
            return int(kept["id"])
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError) as e:
        log.warning("%s is not readable (%s): the id is made from the address again", paths.STATE / _FILE, e)
    _keep(derived, addr)
    return derived


def forget(node: int, addr: str) -> bool:
    """Two nodes have our id: give it up if it is not what our address gives, so that the other one, or the first owner, keeps it.

    Whether we gave it up, and shall start again with the id of our address.
    """
    derived = from_address(addr)
    if node == derived:
        return False
    _keep(derived, addr)
    return True


def _keep(node: int, addr: str) -> None:
    try:
        paths.STATE.mkdir(mode=0o755, parents=True, exist_ok=True)
        new = paths.STATE / f"{_FILE}.new"
        new.write_text(json.dumps({"id": node, "addr": addr, "machine": _machine()}) + "\n")
        os.replace(new, paths.STATE / _FILE)
    except OSError as e:
        log.warning("cannot keep this node's id in %s: %s; it changes with the address", paths.STATE, e.strerror)


def _machine() -> str:
    """The machine id, hashed: it shall not leave the machine as it is."""
    try:
        return hashlib.blake2s(Path("/etc/machine-id").read_bytes().strip(), key=b"omdiscd", digest_size=8).hexdigest()
    except OSError:
        return ""
