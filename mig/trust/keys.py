"""The cluster's keys: 32 bytes each, in ``/etc/mig/cluster.key``; whoever has one belongs to the pool.

The file holds one key as 32 bare bytes, or one or more as lines of 64 hex digits (``#`` begins a comment).  The first seals what this node
says; all are accepted in what it hears.  So a pool changes its key without a stop: the new key is added behind the old one on every node,
then put first on every node, then the old one is dropped.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from mig import paths
from mig.errors import BadInput

SIZE = 32
MOST = 8
"""Keys in one file: each is one more attempt for a datagram that a stranger sends."""


def parse(data: bytes, source: str) -> list[bytes]:
    """The keys in a file's bytes, at least one; raises :class:`BadInput`."""
    if len(data) == SIZE and not _looks_like_text(data):
        return [data]
    keys: list[bytes] = []
    try:
        lines = [line.partition("#")[0].strip() for line in data.decode("ascii").splitlines()]
        keys = [bytes.fromhex(line) for line in lines if line]
    except ValueError:
        keys = []
    if not keys or any(len(k) != SIZE for k in keys) or len(keys) > MOST or len(set(keys)) != len(keys):
        raise BadInput(
            f"{source} does not hold a cluster key",
            hint=f"it has one to {MOST} different keys, each a line of 64 hex digits; mosctl key new makes one",
        )
    return keys


def load(path: Path | None = None) -> list[bytes]:
    """This node's keys, empty where there is no file; raises :class:`BadInput` for a file that is no key, or that others may read."""
    file = path or paths.KEY
    try:
        with open(file, "rb") as f:
            mode, data = os.fstat(f.fileno()).st_mode, f.read(SIZE * 3 * MOST + 4096)
    except FileNotFoundError:
        return []
    except OSError as e:
        raise BadInput(f"the cluster key {file} cannot be read: {e.strerror}") from e
    if stat.S_IMODE(mode) & 0o077:
        raise BadInput(f"others than root may read the cluster key {file} (mode {stat.S_IMODE(mode):o})", hint=f"chmod 600 {file}")
    return parse(data, str(file))


def write(keys: list[bytes], path: Path | None = None) -> None:
    """Replace the file by ``keys``, mode 600, at once as a whole."""
    file = path or paths.KEY
    file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    fresh = file.with_name(file.name + ".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as f:
        f.write(text(keys))
        f.flush()
        os.fsync(f.fileno())
    os.replace(fresh, file)


def text(keys: list[bytes]) -> str:
    """The file's content."""
    return "".join(f"{k.hex()}  # {name(k)}{', seals' if i == 0 else ', accepted'}\n" for i, k in enumerate(keys))


def name(key: bytes) -> str:
    """A short name of a key that tells nothing of it: the same on all nodes."""
    return hashlib.blake2b(key, digest_size=4, person=b"mig key name").hexdigest()


def _looks_like_text(data: bytes) -> bool:
    return all(32 <= b < 127 or b in b"\r\n\t" for b in data)
