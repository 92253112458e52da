"""Whose certificate is whose: this node's own, and those that omdiscd has learnt from sealed gossip, for all processes of the node.

A certificate is known by its fingerprint: the first 16 bytes of the SHA-256 of its DER form, as 22 characters of URL-safe base64.  Sixteen
bytes cannot be met by a second certificate (2^128 attempts), and every entry of the gossip carries them.

omdiscd alone writes.  Agents and keepers read the file anew when it has changed, so that a node that came back with another certificate is
known to them as soon as the pool knows it, and an omdiscd that is restarted takes nothing away.
"""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mig import paths
from mig.errors import MigError
from mig.trust.shared import Shared

FINGERPRINT = 16
"""Bytes."""


@dataclass(frozen=True)
class Peer:
    """Whom a connection leads to: a node of the pool that has proved its certificate."""

    id: int
    name: str


def pem() -> Path:
    """This node's private key and certificate."""
    return paths.TRUST / "node.pem"


def make_identity() -> str:
    """This node's fingerprint; its key and certificate are made where there are none yet, which is once a boot.

    Raises :class:`MigError` when the relay program is missing.
    """
    paths.TRUST.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not pem().exists():
        fresh = pem().with_name(f"node.{os.getpid()}")
        fresh.unlink(missing_ok=True)
        try:
            subprocess.run([paths.libexec() / "relay", "--make", fresh], check=True, stdin=subprocess.DEVNULL)
        except (OSError, subprocess.CalledProcessError) as e:
            raise MigError(f"no certificate could be made for this node: {e}", hint="`make env` compiles the relay") from e
        os.replace(fresh, pem())
    return fingerprint_of_pem(pem().read_text())


def fingerprint_of_pem(text: str) -> str:
    """The fingerprint of the certificate in a PEM file."""
    body = text.split("-----BEGIN CERTIFICATE-----")[1].split("-----END CERTIFICATE-----")[0]
    return fingerprint(hashlib.sha256(base64.b64decode(body)).digest())


def fingerprint(sha256: bytes) -> str:
    """The short form of a certificate's SHA-256."""
    return base64.urlsafe_b64encode(sha256[:FINGERPRINT]).rstrip(b"=").decode()


def is_fingerprint(text: object) -> bool:
    """Whether ``text`` has the form of one."""
    if not isinstance(text, str) or len(text) != 22:
        return False
    try:
        return len(base64.urlsafe_b64decode(text + "==")) == FINGERPRINT
    except ValueError:
        return False


class Store:
    """The table on disk: fingerprint to node."""

    def __init__(self, path: Path | None = None) -> None:
        self._file = Shared[dict[str, Peer]](path or paths.TRUST / "known.json", {}, _form, _parse)

    def write(self, nodes: Iterable[tuple[int, str, str]]) -> None:
        """Replace the table by ``nodes``: id, name and fingerprint of each; those without a fingerprint are left out.  No-op when equal."""
        self._file.write({fp: Peer(i, name) for i, name, fp in nodes if is_fingerprint(fp)})

    def who(self, fp: str) -> Peer | None:
        """The node that has this fingerprint."""
        return self._file.read().get(fp)


def _form(known: dict[str, Peer]) -> dict[str, list[Any]]:
    return {fp: [p.id, p.name] for fp, p in sorted(known.items())}


def _parse(rows: dict[str, list[Any]]) -> dict[str, Peer]:
    return {fp: Peer(int(i), str(name)) for fp, (i, name) in rows.items()}
