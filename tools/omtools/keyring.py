"""``mosctl key``: make, show and install the cluster's key, and change it without stopping the pool."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mig import paths
from mig.errors import BadInput, NoDaemon, NotPermitted
from mig.trust import keys
from omtools import output

if TYPE_CHECKING:
    import argparse

ACTIONS = {
    "new": "make a key; where there is one, the new one is accepted from now on and used after `key use`",
    "show": "print the keys, to be installed on other nodes: mosctl key show | ssh NODE mosctl key install",
    "install": "take the keys in FILE, or on standard input, instead of those that are here",
    "use": "seal with the newest key; the others are still accepted",
    "drop": "accept only the key that seals",
}

_LARGEST = 64 << 10


def key(a: argparse.Namespace) -> int:
    """Do ``a.action``."""
    if os.geteuid() != 0:
        raise NotPermitted("only root may see or change the cluster key")
    if a.file is not None and a.action != "install":
        raise BadInput(f"key {a.action} takes no file")
    have = keys.load()
    if a.action == "show":
        return _show(_some(have), json=a.json)
    if a.action == "install":
        fresh = _read(a.file)
    elif a.action == "new":
        fresh = [*have, os.urandom(keys.SIZE)]
        if len(fresh) > keys.MOST:
            raise BadInput(f"there are {len(have)} keys already", hint="mosctl key drop")
    elif a.action == "use":
        fresh = [_some(have)[-1], *have[:-1]]
    else:
        fresh = _some(have)[:1]
    changed = fresh != have
    if changed:
        keys.write(fresh)
    told = _tell_daemon() if changed else ""
    if a.json:
        output.print_json({"keys": [keys.name(k) for k in fresh], "changed": changed})
        return 0
    print(f"{paths.KEY}: {_sentence(fresh)}{'' if changed else ' (unchanged)'}")
    for line in (_advice(a.action, have, fresh), told):
        if line:
            print(line)
    return 0


def _some(have: list[bytes]) -> list[bytes]:
    if not have:
        hint = "mosctl key new makes one, mosctl key install takes that of another node"
        raise BadInput(f"there is no cluster key {paths.KEY}", hint=hint)
    return have


def _show(have: list[bytes], *, json: bool) -> int:
    if json:
        output.print_json([{"name": keys.name(k), "key": k.hex(), "seals": i == 0} for i, k in enumerate(have)])
    else:
        print(keys.text(have), end="")
    return 0


def _read(file: str | None) -> list[bytes]:
    if file in (None, "-"):
        return keys.parse(sys.stdin.buffer.read(_LARGEST), "standard input")
    try:
        return keys.parse(Path(str(file)).read_bytes()[:_LARGEST], str(file))
    except OSError as e:
        raise BadInput(f"cannot read {file}: {e.strerror}") from e


def _sentence(have: list[bytes]) -> str:
    first, *rest = (keys.name(k) for k in have)
    return f"key {first} seals" + (f", {', '.join(rest)} {'is' if len(rest) == 1 else 'are'} accepted too" if rest else "")


def _advice(action: str, have: list[bytes], fresh: list[bytes]) -> str:
    everywhere = "mosctl key show | ssh NODE mosctl key install, for every node of the pool"
    if action == "new" and have:
        return f"next: {everywhere}; when all have it, the same after mosctl key use, and again after mosctl key drop"
    if action == "new" or (action in ("use", "drop") and have != fresh):
        return f"next: {everywhere}"
    return ""


def _tell_daemon() -> str:
    from omtools.client import Client

    try:
        with Client() as client:
            return "\n".join(client.call("reload")["said"])
    except NoDaemon:
        return "no omdiscd runs here: it will use them when it starts"
