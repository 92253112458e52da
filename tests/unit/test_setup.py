"""Set-up's pure parts: reading the machine's package sources, and what counts as missing."""

from __future__ import annotations

from pathlib import Path

import pytest
from omtools.setup import base, criu, debian

DEB822 = """\
# the release
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/some.gpg

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm

Types: deb-src
URIs: http://source.example/debian
Suites: bookworm
"""
ONE_LINE = """\
# deb http://off.example/debian bookworm main
deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/ubuntu noble main universe
deb http://mirror.example/ubuntu noble-updates main
deb-src http://source.example/ubuntu noble main
"""


def test_deb822_sources() -> None:
    assert debian._deb822(DEB822) == [
        debian.Source("http://mirror.example/debian", ("bookworm", "bookworm-updates"), "/usr/share/keyrings/some.gpg")
    ]


def test_one_line_sources() -> None:
    assert debian._one_line(ONE_LINE) == [
        debian.Source("http://mirror.example/ubuntu", ("noble",), "/k.gpg"),
        debian.Source("http://mirror.example/ubuntu", ("noble-updates",), ""),
    ]


def test_a_package_shows_by_its_command_or_file() -> None:
    assert debian._there("sh")
    assert debian._there("/proc/self")
    assert not debian._there("no-such-command-here")
    assert not debian._there("/no/such/file")


@pytest.mark.parametrize(
    ("release", "version", "old"),
    [("6.18.44-x", "4.1-1", True), ("6.18.0", "4.2.1-1", False), ("6.14.0", "4.1-1", False), ("6.1.0", "3.17-1", False)],
)
def test_a_criu_known_to_fail_is_not_fetched(monkeypatch: pytest.MonkeyPatch, release: str, version: str, old: bool) -> None:
    class Uname:
        pass

    Uname.release = release  # type: ignore[attr-defined]
    monkeypatch.setattr("os.uname", lambda: Uname)
    assert criu._too_old(version) is old


def test_a_failed_command_is_quoted() -> None:
    with pytest.raises(base.SetupError, match=r"(?s)failed \(3\): sh -c .*so it was") as e:
        base.run(["sh", "-c", "echo so it was >&2; exit 3"], hint="do this")
    assert e.value.hint == "do this"
    with pytest.raises(base.SetupError, match="no-such-command is missing"):
        base.run(["no-such-command"])


def test_stamps_hold_for_their_key_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(base, "_STAMPS", tmp_path / "stamps")
    assert not base.stamped("step", "a")
    base.stamp("step", "a")
    assert base.stamped("step", "a")
    assert not base.stamped("step", "b")
