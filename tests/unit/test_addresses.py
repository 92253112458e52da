"""Where nodes are, for all processes of a node."""

from __future__ import annotations

import socket
from pathlib import Path

from mig.trust.addresses import Addresses
from mig.trust.links import _sockaddr


def test_what_one_process_writes_others_read(tmp_path: Path) -> None:
    ours, theirs = Addresses(tmp_path / "a.json"), Addresses(tmp_path / "a.json")
    assert theirs.of(1) == ""
    ours.write([(1, "10.0.0.1"), (2, "fd00::2")])
    assert (theirs.of(1), theirs.of(2), theirs.of(3)) == ("10.0.0.1", "fd00::2", "")
    ours.write([(2, "fd00::2"), (1, "10.0.0.9")])
    assert theirs.of(1) == "10.0.0.9"
    before = (tmp_path / "a.json").stat()
    ours.write([(1, "10.0.0.9"), (2, "fd00::2")])  # the same
    assert (tmp_path / "a.json").stat().st_ino == before.st_ino


def test_an_address_as_the_kernel_reads_it() -> None:
    for family, here in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.socket(family, socket.SOCK_DGRAM) as s:
            s.bind((here, 0))
            raw = _sockaddr(here, s.getsockname()[1])
            assert len(raw) == {socket.AF_INET: 16, socket.AF_INET6: 28}[family]
            assert raw[2:4] == s.getsockname()[1].to_bytes(2, "big") and socket.inet_pton(family, here) in raw
